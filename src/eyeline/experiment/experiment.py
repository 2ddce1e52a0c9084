"""What one run trains, on what, by whose help: made once, and handed down from the verb to the last step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import nn

from eyeline.data.preprocess import CENTRAL, Preprocess
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.fingerprint import student_fingerprint, teacher_fingerprint
from eyeline.losses import LOSSES
from eyeline.losses.base import own_code
from eyeline.objective.method import terms_of
from eyeline.observe import Probe
from eyeline.randomness import draws_apart, mix
from eyeline.runs.card import called
from eyeline.settings import Settings

BASELINE = "ce"
"""The method of a network that learns alone."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Student:
    """A network that is to be trained."""

    given: Any
    """What it was given as: a name, a run folder, a module, a function."""
    network: nn.Module
    shape: tuple[int, int, int]
    """``(C, H, W)`` of its images."""

    @property
    def name(self) -> str:
        return called(self.given)

    @cached_property
    def probe(self) -> Probe:
        return Probe(self.network, self.shape)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """By what it is known again, before it is trained."""
        return student_fingerprint(self.network, self.shape)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network with trained weights, which stay as they are."""

    name: str
    network: nn.Module
    shape: tuple[int, int, int]
    """``(C, H, W)`` of its images."""
    tested: dict[str, Any] = field(default_factory=dict)
    """What it reaches on a split, by the split's name, once it was asked; None for one of other classes."""

    @cached_property
    def probe(self) -> Probe:
        return Probe(self.network, self.shape)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """By what it is known again."""
        return teacher_fingerprint(self.network, self.shape)

    def knows_classes_of(self, data: ImageData) -> bool:
        """Whether it answers logits of as many classes."""
        return self.probe.answer == (len(data.classes),)


@dataclass(frozen=True, eq=False)
class Experiment:
    """One student, its teacher, the data, a method, and settings in which nothing is ``auto``."""

    student: Student
    data: ImageData
    settings: Settings
    teacher: Teacher | None = None
    method: Any = BASELINE
    layers: str | Sequence[str] = "auto"

    @cached_property
    def device(self) -> Device:
        return Device.of(self.settings)

    @cached_property
    def distiller(self) -> Distiller:
        """That of the method; to be closed."""
        return self.distiller_of(self.method)

    def distiller_of(self, method: Any) -> Distiller:
        """Of these networks by another method; what the losses learn depends on the seed alone."""
        student, teacher = self.student, self.teacher
        probes = (student.probe, None if teacher is None else teacher.probe)
        network = None if teacher is None else teacher.network
        return from_seed(
            self.settings,
            lambda: Distiller(student.network, network, method, self.layers, student.shape, probes=probes),
        )

    @property
    def view(self) -> Preprocess:
        """How images are prepared for evaluation."""
        _, height, width = self.student.shape
        data, size = self.data, (height, width)
        return Preprocess(data.channels, size, data.mean, data.std, CENTRAL if data.size is None else 1.0)

    def inputs(self) -> dict[str, Any]:
        """Records of what may change under a recipe that stays the same."""
        numbers = [" ".join(f"{number:.6g}" for number in each) for each in (self.data.mean, self.data.std)]
        known: dict[str, Any] = {"data": self.data.fingerprint(), "mean and std": ", ".join(numbers)}
        if self.teacher is not None:
            known["teacher"] = self.teacher.fingerprint
        losses = {name: own_code(LOSSES[term.loss]) for name, term in terms_of(self.method).items()}
        if own := {name: code for name, code in losses.items() if code is not None}:
            known["losses"] = own
        return known | {"model" if self.teacher is None else "student": self.student.fingerprint}

    def later(self, data: ImageData, settings: Settings | None = None) -> Experiment:
        """The same once the images are loaded, or the number of the memory's views is known."""
        other = dataclasses.replace(self, data=data, settings=settings or self.settings)
        if "distiller" in vars(self):
            vars(other)["distiller"] = self.distiller
        return other


def image_shape(data: ImageData, settings: Settings) -> tuple[int, int, int]:
    """``(C, H, W)`` of what the networks are given."""
    side = settings.image_size
    height, width = data.size or (side, side)
    return data.channels, height, width


def from_seed(settings: Settings, make: Callable[[], _Made]) -> _Made:
    """What is made, a network of initial weights above all, depends on the seed alone."""
    with draws_apart(Device.of(settings).torch_device, seed=mix(settings.seed, 0x696E6974) >> 1):
        return make()


def described(data: ImageData) -> dict[str, Any]:
    """What a result tells of the data."""
    sizes = {name: len(split) for name, split in data.splits.items()}
    skipped = {"skipped": list(data.skipped)} if data.skipped else {}
    facts = {"name": data.name, "fingerprint": data.fingerprint(), "classes": list(data.classes)}
    return {**facts, **sizes, **skipped}
