"""What a run's trained network is: ``model.json``, and the network rebuilt from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torchvision.datasets import FashionMNIST

from eyeline import models
from eyeline.data.preprocess import CENTRAL, Preprocess
from eyeline.data.splits import ImageData
from eyeline.errors import InputError
from eyeline.files import read_json
from eyeline.runs.folder import (
    MODEL,
    STUDY,
    is_run,
)


def load(folder: Path, network: nn.Module | None = None) -> nn.Module:
    if str(folder) in models.EMBEDDED and network is None:
        network = models.create_model(str(folder), pretrained=True)
        return _with_view(network, preprocess_of(network), tuple(FashionMNIST.classes))
    folder = folder.expanduser()
    if (folder / STUDY).is_file():
        runs = sorted(file.parent for file in folder.glob(f"*/*/{MODEL}"))
        raise InputError(f"{folder} is a study; name one of its runs{f', as {runs[0]}' if runs else ''}")
    card = read_json(folder / MODEL, "a finished run of eyeline train or distill")
    try:
        name, classes, channels = card["model"], tuple(card["classes"]), card["in_chans"]
        view: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocess"].items()}
        preprocess, weights = Preprocess(**view), folder / card["weights"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MODEL} is damaged, or of another version ({error})") from error
    if not (isinstance(name, str | None) and isinstance(channels, int)):
        raise InputError(f"{folder / MODEL} is damaged: model is {name!r}, in_chans {channels!r}")
    if network is None:
        if name is None:
            raise InputError(
                f"{folder} was trained from a Python object; "
                f"give it: eyeline.load({str(folder)!r}, model=...)"
            )
        network = models.create_model(name, len(classes), channels)
    if not isinstance(network, nn.Module):
        raise InputError(f"model is {network!r}; expected a network, as MyNet(), not the class")
    models.load_weights(network, weights)
    return _with_view(network, preprocess, classes)


def _with_view(network: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> nn.Module:
    """In evaluation mode, with what its input is made by and what its outputs are called."""
    # plain attributes: torch declares only tensors and modules
    vars(network).update(preprocess=preprocess, classes=classes)
    return network.eval()


def held_out_hashes(data: ImageData) -> dict[str, str]:
    """Hashes of the images that are kept from training."""
    return {name: data.fingerprint(name) for name in data.splits if name != "train"}


def preprocess_of(network: nn.Module) -> Preprocess:
    """The evaluation view of a network: of its run, of timm's configuration, or of ImageNet."""
    own = getattr(network, "preprocess", None)
    if isinstance(own, Preprocess):
        return own
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first else 3
    config = getattr(network, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    size = tuple(config.get("input_size", (channels, 224, 224))[1:])
    return Preprocess(channels, size, tuple(mean), tuple(std), config.get("crop_pct", CENTRAL))


def names_run(given: str) -> bool:
    folder = Path(given).expanduser()
    return (folder / MODEL).is_file() or is_run(folder)


def called(given: Any) -> str:
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def architecture(given: Any) -> str | None:
    """The name that rebuilds a network, seen through run folders."""
    if not isinstance(given, str):
        return None
    if names_run(given):
        return read_json(Path(given).expanduser() / MODEL, "a run")["model"]
    return given
