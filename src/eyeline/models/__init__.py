"""Networks by their usual names, and their weights. Importing this registers ours with timm."""

from __future__ import annotations

import pickle
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from eyeline.errors import InputError, unknown
from eyeline.models import wrn

EMBEDDED = {"wrn_16_2.fashion_mnist": {"num_classes": 10, "in_chans": 1}}
"""Networks whose trained weights come with the package."""


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: ``wrn_16_1`` and its family, any name timm knows, ``torchvision/NAME``, or the name of weights that
            come with the package (``wrn_16_2.fashion_mnist``).
        num_classes: classes K of the logits (default: the network's own).
        in_chans: channels of the images (default: the network's own, mostly 3).
        pretrained: load the weights that timm or torchvision publish, or that come with the package.
        weights: a checkpoint to load instead, see :func:`load_weights`.
        options: passed on to the network.

    Raises:
        InputError: the name is unknown, or the weights do not fit.
    """
    sizes = {k: v for k, v in (("num_classes", num_classes), ("in_chans", in_chans)) if v is not None}
    if name in EMBEDDED:
        for key, value in sizes.items():
            if value != EMBEDDED[name][key]:
                raise InputError(f"{name} was trained with {key}={EMBEDDED[name][key]}; {key}={value} was asked for")
        model: nn.Module = timm.create_model(name.partition(".")[0], **EMBEDDED[name], **options)
        if pretrained:
            with resources.as_file(resources.files("eyeline.data") / "assets" / f"{name}.safetensors") as path:
                load_weights(model, path)
    elif name.startswith("torchvision/"):
        model = _torchvision(name.removeprefix("torchvision/"), num_classes, in_chans, pretrained, options)
    elif (size := wrn.parse(name)) and not timm.is_model(name):
        model = wrn.WideResNet(*size, **sizes, **options)
    elif timm.is_model(name):
        try:
            model = timm.create_model(name, pretrained=pretrained, **sizes, **options)
        except (RuntimeError, OSError, ValueError) as error:
            if not pretrained:
                raise
            raise InputError(
                f"the published weights of {name} could not be had ({str(error)[:200]}); "
                "give a checkpoint file or a run folder instead"
            ) from error
    else:
        raise _unknown_model(name)
    if weights is not None:
        load_weights(model, weights)
    return model


def _torchvision(
    name: str, num_classes: int | None, in_chans: int | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models():
        raise unknown("torchvision model", name, torchvision.models.list_models())
    if in_chans not in (None, 3):
        raise InputError(f"torchvision/{name} takes images of 3 channels, not {in_chans}; timm's {name} may take them")
    if num_classes is not None:
        options = {"num_classes": num_classes, **options}
    return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)


def _unknown_model(name: str) -> InputError:
    names = [*timm.list_models(), *EMBEDDED]
    if name.startswith(("folder:", ".", "/", "~")) or "/" in name:
        return InputError(f"model {name!r} is neither a run folder that exists nor a name; expected a folder with "
                          "model.json, a timm name, or torchvision/NAME")
    error = unknown("model", name, names)
    # the list of all of timm's names helps nobody
    return InputError(str(error).partition(" (")[0].rstrip(";") + "; see timm.list_models(), or torchvision/NAME")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network: safetensors, or a PyTorch file that holds tensors only.

    A ``state_dict`` or ``model`` entry around the tensors and a ``module.`` prefix are seen through.

    Raises:
        InputError: the file is missing, truncated, needs unpickling (which could run code, and is refused), or
            its tensors are not those of the network.
    """
    tensors = read_tensors(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    ours = model.state_dict()
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
    return f"{len(names)} tensors ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else "none"


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
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist; expected a .safetensors (or tensors-only .pt) file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, ValueError) as error:
            raise InputError(f"checkpoint {path} is truncated or no safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is refused: it is not a file of tensors only, and unpickling could run code; "
            "save its state_dict() with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} is truncated or no PyTorch file ({str(error)[:100]})") from error
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"checkpoint {path} holds no named tensors; expected the state_dict() of a network")
    return content


def parameter_count(model: nn.Module) -> int:
    """Learnable parameters of a network."""
    return sum(p.numel() for p in model.parameters())
