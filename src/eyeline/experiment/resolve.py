"""From what was named to objects: data, student, teacher."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from eyeline import models
from eyeline.console import say, show_progress
from eyeline.data.sources import list_data
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.errors import InputError
from eyeline.experiment.experiment import Student, Teacher, from_seed, image_shape
from eyeline.files import read_json
from eyeline.ranks import is_main_process
from eyeline.runs.card import called, held_out_hashes, load, names_run
from eyeline.runs.folder import MODEL
from eyeline.settings import Settings


def listed_data(given: Any, settings: Settings) -> tuple[ImageData, Callable[[], ImageData]]:
    """The data as listed, and what loads it; what cannot work with it, or on this machine, is refused."""
    Device.of(settings)
    found, load = list_data(
        given,
        settings,
        say=say,
        progress=lambda total: show_progress(settings, total, 0, "packing", shown=is_main_process()),
    )

    listed = dataclasses.replace(found)  # the caller's own may have changed since it was hashed

    @functools.cache
    def loaded() -> ImageData:
        data = load()
        data = listed if data is found else dataclasses.replace(data)
        if data.size is None:
            sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
            say(f"{data.name}: {sizes} images of {len(data.classes)} classes")
        return data

    return listed, loaded


def named_student(
    given: Any, data: ImageData, settings: Settings, pretrained: bool = False, weights: str | None = None
) -> Student:
    """The network to train: a name, a run folder, a module (copied), or a function that makes one.

    Raises:
        InputError: there is no such network, its answers are not the classes of the data, or it cannot learn.
    """

    def made() -> Student:
        network = _network(given, data, pretrained, weights)
        student = Student(given, network, image_shape(data, settings))
        _ = student.probe  # in which lazy modules draw their weights
        return student

    student = from_seed(settings, made)
    network = student.network
    if student.probe.answer != (len(data.classes),):
        raise InputError(
            f"the network answers {list(student.probe.answer)} for an image; {data.name} has "
            f"{len(data.classes)} classes"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"{called(given)} has no parameter that requires a gradient; there is nothing to train"
        )
    network.train()
    return student


def _network(given: Any, data: ImageData, pretrained: bool, weights: str | None) -> nn.Module:
    if isinstance(given, str) and not names_run(given):
        return models.create_model(given, len(data.classes), data.channels, pretrained, weights)
    if pretrained:
        raise InputError(f"pretrained is for a network given by name; {called(given)} brings its own weights")
    if isinstance(given, nn.Module):
        network = copy.deepcopy(given)
    elif isinstance(given, str):
        network = load(Path(given))
    elif callable(given):
        network = given()
    else:
        raise InputError(
            f"model is {given!r}; expected a name, a run folder, an nn.Module, or a function that makes one"
        )
    if weights is not None:
        models.load_weights(network, weights)
    return network


def named_teacher(given: Any, data: ImageData, settings: Settings, weights: str | None) -> Teacher:
    """The teacher: with trained weights, never a fresh head.

    Raises:
        InputError: there is no such network, or it has no trained weights.
    """
    if weights is not None and (not isinstance(given, str) or names_run(given)):
        raise InputError(
            f"teacher_weights is for a teacher given by name; {called(given)} brings its own weights"
        )
    if isinstance(given, nn.Module):
        network = given
    elif isinstance(given, str) and names_run(given):
        network = load(Path(given).expanduser())
    elif isinstance(given, str) and weights is not None:
        network = models.create_model(given, len(data.classes), data.channels, weights=weights)
    elif isinstance(given, str):
        if _has_no_published_weights(models.create_model(given), given):
            raise InputError(
                f"no trained weights are published for {given}; give a run folder "
                "(made with eyeline train), or a checkpoint with --teacher_weights"
            )
        network = models.create_model(given, pretrained=True)
    else:
        raise InputError(f"teacher is {given!r}; expected a run folder, a name or an nn.Module")
    classes = getattr(network, "classes", None)
    if classes is not None and len(classes) == len(data.classes) and tuple(classes) != data.classes:
        say(f"teacher {called(given)} names its classes otherwise than {data.name}; they are paired in order")
    return Teacher(called(given), network.eval().requires_grad_(False), image_shape(data, settings))


def tell_of_another_division(teacher: Any, data: ImageData) -> None:
    """Say of a teacher that it may have been trained on images that are held out here."""
    if not (isinstance(teacher, str) and names_run(teacher)):
        return
    theirs = read_json(Path(teacher).expanduser() / MODEL, "a run").get("data", {})
    others = [name for name, hash_ in held_out_hashes(data).items() if theirs.get(name, hash_) != hash_]
    if others and theirs.get("name") == data.name:
        say(
            f"teacher {teacher} was trained beside other {' and '.join(others)} images of {data.name} (of "
            "another split_seed, or before files came or went); it may have seen some of these, and its "
            "figures be too high: train it again, or keep test images in a folder of their own"
        )


def _has_no_published_weights(network: nn.Module, name: str) -> bool:
    config = getattr(network, "pretrained_cfg", None) or {}
    return (
        name not in models.EMBEDDED
        and not name.startswith("torchvision/")
        and not (config.get("url") or config.get("hf_hub_id") or config.get("file"))
    )


def named_network(given: Any, pretrained: bool, weights: str | None) -> nn.Module:
    """A network to look at; it is said of one that has random weights.

    Raises:
        InputError: there is no such network.
    """
    if weights is not None and (not isinstance(given, str) or names_run(given)):
        raise InputError(f"weights is for a model given by name; {called(given)} brings its own")
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str):
        raise InputError(f"model is {given!r}; expected a name, a run folder or an nn.Module")
    if names_run(given):
        return load(Path(given).expanduser())
    if given in models.EMBEDDED:
        pretrained = True
    network = models.create_model(given, pretrained=pretrained, weights=weights)
    if not pretrained and weights is None:
        say(f"{given} has random weights: give --pretrained, --weights FILE or a run folder for trained ones")
    return network
