"""Weights from files, never code."""

from __future__ import annotations

import pickle
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from eyeline.errors import InputError


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network: safetensors, or a PyTorch file that holds tensors only.

    A ``state_dict`` or ``model`` entry around the tensors, and the prefixes ``module.`` and ``_orig_mod.``
    (of a parallel and of a compiled network), are seen through.

    Raises:
        InputError: the file is missing, truncated, needs unpickling (which could run code, and is refused),
            or its tensors are not those of the network.
    """
    tensors = read_tensors(path)
    ours = model.state_dict()
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors) and not tensors.keys() <= ours.keys():
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    missing = [name for name in ours if name not in tensors and not name.endswith("num_batches_tracked")]
    foreign = [name for name in tensors if name not in ours]
    if missing or foreign:
        raise InputError(
            f"{path} is a checkpoint of another network than {type(model).__name__}: "
            f"{_some(missing)} missing, {_some(foreign)} unknown to it"
        )
    for name, tensor in tensors.items():
        if tensor.shape != ours[name].shape:
            raise InputError(
                f"{path}: {name} is {list(tensor.shape)}, the network has {list(ours[name].shape)}"
                f"{_why(name, tensor, ours[name], list(ours))}"
            )
    model.load_state_dict({**ours, **tensors})


def _some(names: list[str]) -> str:
    return (
        f"{len(names)} tensors ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        if names
        else "none"
    )


def _why(name: str, theirs: Tensor, ours: Tensor, names: list[str]) -> str:
    weights = [n for n in names if n.endswith("weight")]
    if name.rpartition(".")[0] == weights[-1].rpartition(".")[0]:
        return f"; the checkpoint has {theirs.shape[0]} classes, the network {ours.shape[0]}"
    if name == weights[0] and theirs.ndim == 4:
        return f"; the checkpoint takes images of {theirs.shape[1]} channels, the network of {ours.shape[1]}"
    return ""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint, never running code from it.

    Raises:
        InputError: as :func:`load_weights`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(
            f"checkpoint {path} is a folder; expected a file, .safetensors or .pt with tensors only"
        )
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} does not exist; expected a .safetensors (or tensors-only .pt) file"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(f"checkpoint {path} is truncated or no safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it is damaged, or holds more than tensors, and unpickling that "
            "could run code; save the network's state_dict() with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # torch.load has no kind of its own for a damaged file
        raise InputError(f"checkpoint {path} is truncated or no PyTorch file ({str(error)[:100]})") from error
    for wrapper in ("model", "net", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"checkpoint {path} holds no named tensors; expected the state_dict() of a network")
    return content


def parameter_count(model: nn.Module) -> int:
    """Learnable parameters of a network."""
    return sum(p.numel() for p in model.parameters())
