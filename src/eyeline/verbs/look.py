"""Where a network looks. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from eyeline.errors import InputError
from eyeline.names import check_images, check_names
from eyeline.settings import Settings
from eyeline.verbs._common import checked_arguments


@checked_arguments
def look(
    model: str | Any,
    images: str | Any,
    out: str = "look.png",
    *,
    layers: str | Sequence[str] = "auto",
    maps: Sequence[str] = ["sum^1", "sum^2", "sum^4", "max^2"],
    count: int = 4,
    pretrained: bool = False,
    weights: str | None = None,
    skip_bad_images: bool = False,
    data_root: str | None = None,
    download: bool = False,
) -> Path:
    """Draw where a network looks: attention maps by layer and map function, in one picture.

    Args:
        model: a run folder, a name, or (in Python) an nn.Module
        images: an image file, a folder of images, or a data set (fashion_mnist_sample, its test images)
        out: the picture, PNG
        layers: auto, or names
        maps: map functions: sum^P or max^P with an exponent P of at least 1
        count: how many images, at most
        pretrained: load the published weights of a model given by name
        weights: checkpoint of a model given by name (safetensors)
        skip_bad_images: leave out unreadable images of a folder, and name them
        data_root: folder where data sets lie, or are downloaded to
        download: download a data set that is missing

    Returns:
        The path of the picture.

    Raises:
        InputError: something given cannot work.
    """
    check_names(networks=[model])
    if isinstance(images, str):
        check_images(images)
    import torch

    from eyeline.attention import attention_map
    from eyeline.console import say
    from eyeline.data.images import left_out
    from eyeline.data.pictures import read_images
    from eyeline.experiment.resolve import named_network
    from eyeline.observe import Observer, evaluation_mode
    from eyeline.pages.pictures import look_figure, save_figure
    from eyeline.runs.card import preprocess_of

    path = Path(out).expanduser()
    if path.suffix.lower() != ".png":
        raise InputError(f"out is {out}; the picture is a PNG, expected a name that ends in .png")
    functions = {name: _map_function(name) for name in maps}
    if count < 1:
        raise InputError(f"count is {count}; expected a whole number of at least 1")
    settings = Settings.of(skip_bad_images=skip_bad_images, data_root=data_root, download=download)
    network = named_network(model, pretrained, weights)
    preprocess, names = preprocess_of(network), None
    if isinstance(images, torch.Tensor):
        pixels = images[:count].cpu()
    else:
        pixels, names, bad = read_images(images, preprocess, count, settings)
        if bad:
            say(left_out(bad))
    batch = preprocess(pixels)
    first = next(network.parameters(), torch.empty(0))
    _, channels, height, width = batch.shape
    with (
        Observer(network, layers, (channels, height, width)) as observer,
        torch.no_grad(),
        evaluation_mode(network),
    ):
        features = observer(batch.to(first.device)).features
    drawn = {
        layer.name: {name: attention_map(feature, *how).cpu() for name, how in functions.items()}
        for layer, feature in zip(observer.layers, features, strict=True)
    }
    try:
        return save_figure(look_figure(pixels, drawn, names), path)
    except OSError as error:
        raise InputError(f"cannot write the picture {out}: {error.strerror or error}") from error


def _map_function(name: str) -> tuple[float, Literal["sum", "max"]]:
    """Exponent and reduction of a map function."""
    match = re.fullmatch(r"(sum|max)\^(\d+(?:\.\d+)?)", name)
    if match is None or float(match[2]) < 1:
        raise InputError(
            f"map function {name!r}; expected sum^P or max^P with an exponent P of at least 1, as in sum^2"
        )
    return float(match[2]), "sum" if match[1] == "sum" else "max"
