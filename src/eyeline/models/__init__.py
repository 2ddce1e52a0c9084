"""Networks by their usual names, and their weights. Importing this registers ours with timm."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from eyeline.errors import InputError, unknown
from eyeline.models import mobilenet, nin, resnet, shufflenet, vgg, wrn  # noqa: F401 (known to timm)
from eyeline.names import unknown_network, wide

EMBEDDED = {"wrn_16_2.fashion_mnist": {"num_classes": 10, "in_chans": 1}}
"""Networks whose trained weights come with the package."""
_EMBEDDED_VIEW = {"input_size": (1, 28, 28), "mean": (0.2860,), "std": (0.3530,), "crop_pct": 1.0}
"""What they were trained on, in timm's terms."""


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
        name: ``wrn_16_1``, ``resnet20`` and the others of docs/networks.md, any name timm knows,
            ``torchvision/NAME``, or the name of weights that come with the package
            (``wrn_16_2.fashion_mnist``).
        num_classes: classes K of the logits (default: the network's own).
        in_chans: channels of the images (default: the network's own, mostly 3).
        pretrained: load the weights that timm or torchvision publish, or that come with the package.
        weights: a checkpoint to load instead, see :func:`load_weights`.
        options: passed on to the network.

    Raises:
        InputError: the name is unknown, or the weights do not fit.
    """
    sizes: dict[str, Any] = {
        k: v for k, v in (("num_classes", num_classes), ("in_chans", in_chans)) if v is not None
    }
    if name in EMBEDDED:
        for key, value in sizes.items():
            if value != EMBEDDED[name][key]:
                raise InputError(
                    f"{name} was trained with {key}={EMBEDDED[name][key]}; {key}={value} was asked for"
                )
        model: nn.Module = timm.create_model(
            name.partition(".")[0], pretrained_cfg_overlay=_EMBEDDED_VIEW, **{**EMBEDDED[name], **options}
        )
        if pretrained:
            with resources.as_file(
                resources.files("eyeline.data") / "assets" / f"{name}.safetensors"
            ) as path:
                load_weights(model, path)
    elif name.startswith("torchvision/"):
        with _downloading(name, pretrained):
            model = _torchvision(
                name.removeprefix("torchvision/"), num_classes, in_chans, pretrained, options
            )
    elif (size := wide(name)) and not timm.is_model(name):
        depth, width = size
        model = wrn.WideResNet(depth, width, **{**sizes, **options})
        if pretrained:
            raise InputError(
                f"no trained weights are published for {name}; give a checkpoint file or a run folder"
            )
    elif timm.is_model(name):
        try:
            with _downloading(name, pretrained), _asked_once(name, pretrained):
                model = timm.create_model(name, pretrained=pretrained, **{**sizes, **options})
        except RuntimeError as error:
            if "pretrained tag" in str(error):
                raise unknown_network(name, timm.list_models()) from error
            raise
    else:
        raise unknown_network(name, timm.list_models())
    if weights is not None:
        load_weights(model, weights)
    return model


@contextmanager
def _downloading(name: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if not pretrained or isinstance(error, InputError):
            raise
        raise InputError(
            f"the published weights of {name} could not be had ({str(error)[:200]}); "
            "give a checkpoint file or a run folder instead"
        ) from error


@contextmanager
def _asked_once(name: str, pretrained: bool) -> Iterator[None]:
    """Where the hub of timm's weights is out of reach, look in its cache alone: it would try for a minute."""
    from huggingface_hub import constants, get_session

    offline, unreachable = constants.HF_HUB_OFFLINE, ""
    if pretrained and not offline and timm.get_pretrained_cfg_value(name, "hf_hub_id"):
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception as error:  # its kinds are those of another library, and changed
            unreachable = f"{constants.ENDPOINT} cannot be reached: {error}"
    constants.HF_HUB_OFFLINE = offline or bool(unreachable)
    try:
        yield
    except OSError as error:
        raise OSError(unreachable or error) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _torchvision(
    name: str, num_classes: int | None, in_chans: int | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)  # those that classify images
    if name not in names:
        raise unknown("torchvision model", name, names)
    if in_chans not in (None, 3):
        raise InputError(
            f"torchvision/{name} takes images of 3 channels, not {in_chans}; timm's {name} may take them"
        )
    if not pretrained:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        return torchvision.models.get_model(name, weights=None, **{**classes, **options})
    model = torchvision.models.get_model(name, weights="DEFAULT", **options)
    if num_classes is not None:
        _replace_classifiers(model, torchvision.models.get_model(name, weights=None, num_classes=num_classes))
    return model


def _replace_classifiers(model: nn.Module, fresh: nn.Module) -> None:
    """Put those layers of a fresh network into another that differ in shape: its classifiers."""
    theirs = dict(fresh.named_modules())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and name in theirs:
            replacement = theirs[name]
            if (
                isinstance(replacement, nn.Linear | nn.Conv2d)
                and replacement.weight.shape != module.weight.shape
            ):
                model.set_submodule(name, replacement)


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
