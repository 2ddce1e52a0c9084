"""Networks by their usual names, and their weights. Importing this registers ours with timm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import timm
from torch import nn

from eyeline.errors import InputError, unknown
from eyeline.models import mobilenet, nin, resnet, shufflenet, vgg, wrn  # noqa: F401 (known to timm)
from eyeline.models.weights import load_weights, parameter_count, read_tensors
from eyeline.names import unknown_network, wide

__all__ = ["EMBEDDED", "create_model", "load_weights", "parameter_count", "read_tensors"]

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
