"""The settings every training verb shares. No heavy import: the command line reads this file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from eyeline.errors import InputError, unknown
from eyeline.kinds import as_kind


def _setting(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Settings:
    """How to train: data, optimisation, reproducibility, hardware. The defaults are the CIFAR recipe of
    Zagoruyko & Komodakis (2017): SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128, 200 epochs,
    learning rate x 0.2 at 30, 60 and 80 % of training."""

    # data
    train_size: int | None = _setting(None, "use only this many training images, balanced over the classes")
    validation_size: int | None = _setting(
        None,
        "training images held out for validation where the data has no validation split (default: 10 %%)",
    )
    augmentation: Literal["auto", "crop+flip", "flip", "none", "resized-crop"] = _setting(
        "auto",
        "crop+flip: reflect-pad 4, random crop, horizontal flip; resized-crop: as on ImageNet; "
        "auto: crop+flip for images in memory, resized-crop for folders",
    )
    image_size: int = _setting(224, "side in pixels to which images of a folder are cropped")
    workers: int | None = _setting(
        None, "processes that decode images of a folder (default: one a core that this process may use)"
    )
    skip_bad_images: bool = _setting(False, "leave out unreadable images of a folder, and count them")
    packed: str | None = _setting(
        None, "folder in which decoded and resized images of a folder are kept, for all runs that name it"
    )
    data_root: str | None = _setting(None, "folder where data sets lie, or are downloaded to")
    download: bool = _setting(False, "download a data set that is not there (its checksum is verified)")

    # views and the teacher's memory
    views: int | None = _setting(
        None,
        "distinct views of each training image, seen in turn (default: one an epoch; with a memory as many "
        "as memory_budget holds)",
    )
    memory: str | None = _setting(
        None,
        "folder in which what the teacher answers to each view is remembered, for all runs that name it",
    )
    memory_budget: float = _setting(4.0, "GB of disk that the memory of a run or a study may take")
    memory_precision: Literal["float16", "float32", "uint8"] = _setting(
        "float16", "how it is remembered; float32: exactly; uint8: maps in a byte a position"
    )

    # optimisation
    epochs: int = _setting(200, "passes over the training images")
    batch_size: int = _setting(128, "images a step, over all devices")
    optimizer: Literal["sgd", "adamw"] = _setting("sgd", "sgd (momentum, no Nesterov) or adamw")
    learning_rate: float | None = _setting(None, "peak learning rate (default: 0.1 for sgd, 0.001 for adamw)")
    momentum: float = _setting(0.9, "momentum of sgd")
    weight_decay: float | None = _setting(None, "weight decay (default: 5e-4 for sgd, 0.05 for adamw)")
    schedule: Literal["auto", "step", "cosine", "constant"] = _setting(
        "auto", "learning rate over training; auto: step for sgd, cosine for adamw"
    )
    milestones: tuple[float, ...] = _setting(
        (0.3, 0.6, 0.8), "step: where the rate drops, as fractions of training"
    )
    gamma: float = _setting(0.2, "step: factor of the rate at each milestone")
    warmup_epochs: float = _setting(0.0, "epochs over which the rate rises linearly from 0")

    # reproducibility
    seed: int = _setting(0, "seed of initialisation, order and (unless view_seed is given) views")
    view_seed: int | None = _setting(
        None, "seed of the augmentation (default: seed; with a memory 0, so that all seeds share it)"
    )
    split_seed: int = _setting(
        0, "seed of the validation split and of train_size, the same for all runs of a study"
    )

    # hardware
    accelerator: str = _setting("auto", "cpu, cuda, mps, auto")
    devices: int | Literal["auto"] = _setting(
        "auto", "number of devices (auto: 1 on a CPU, all GPUs otherwise)"
    )
    precision: Literal["auto", "float32", "bf16"] = _setting(
        "auto", "auto: bf16 autocast where the hardware has it"
    )
    compile: Literal["auto", "on", "off"] | tuple[Literal["teacher", "losses", "student"], ...] = _setting(
        "auto",
        "on: torch.compile of teacher, losses and student, or of those named; auto: all on a GPU, on a CPU "
        "in a long run what gains",
    )

    # the run
    checkpoint_every: int | None = _setting(
        None, "steps between checkpoints (default: at the end of each epoch)"
    )
    validate_every: int = _setting(1, "epochs between validations; the last epoch is always validated")
    progress: bool = _setting(True, "show a progress bar")

    def __post_init__(self) -> None:
        """Refuse impossible values before any work starts."""
        for name, kind in kinds_of_settings().items():
            object.__setattr__(self, name, as_kind(name, getattr(self, name), kind))

        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}")

        counts = ("epochs", "batch_size", "validate_every", "train_size", "validation_size", "image_size")
        for name in (*counts, "views", "checkpoint_every"):
            value = getattr(self, name)
            need(value is None or value >= 1, name, "a whole number of at least 1")
        need(self.devices == "auto" or self.devices >= 1, "devices", "a whole number of at least 1, or auto")
        need(self.memory_budget > 0, "memory_budget", "a number of GB above 0")
        need(self.learning_rate is None or self.learning_rate > 0, "learning_rate", "a number above 0")
        need(self.weight_decay is None or self.weight_decay >= 0, "weight_decay", "a number of at least 0")
        need(0 <= self.momentum < 1, "momentum", "a number in [0, 1)")
        need(all(0 < m < 1 for m in self.milestones), "milestones", "fractions of training between 0 and 1")
        need(0 < self.gamma <= 1, "gamma", "a factor in (0, 1]")
        need(self.warmup_epochs >= 0, "warmup_epochs", "a number of at least 0")
        need(self.workers is None or self.workers >= 0, "workers", "a whole number of at least 0")

    def resolve(self, *, files: bool, accelerator: str, devices: int, precision: str) -> Settings:
        """What these settings mean: no ``auto`` is left but that of ``compile``, which is known when training
        starts, and no None that stands for a number.

        Args:
            files: whether the data are images in files, not in memory.
            accelerator: what runs it, as ``cpu``.
            devices: on how many.
            precision: float32 or bf16.

        Raises:
            InputError: the augmentation is not for such data.
        """
        if self.augmentation == "resized-crop" and not files:
            raise InputError(
                "augmentation 'resized-crop' is for folders of images; for images in memory use 'crop+flip'"
            )
        sgd = self.optimizer == "sgd"
        meant: dict[str, Any] = {
            "augmentation": "resized-crop" if files else "crop+flip",
            "learning_rate": 0.1 if sgd else 1e-3,
            "weight_decay": 5e-4 if sgd else 0.05,
            "schedule": "step" if sgd else "cosine",
            "view_seed": self.seed if self.memory is None else 0,  # all seeds share the views of a memory
        }
        left = {name: value for name, value in meant.items() if getattr(self, name) in (None, "auto")}
        left |= {"accelerator": accelerator, "devices": devices, "precision": precision}
        return dataclasses.replace(self, **left)

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Make settings from keywords; an unknown name is an error with the nearest one."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise unknown("setting", name, names)
        return cls(**values)


class SettingsButMemory(TypedDict, total=False):
    """The settings as keywords of a verb, for editors and type checkers; ``Settings`` documents them."""

    train_size: int | None
    validation_size: int | None
    augmentation: Literal["auto", "crop+flip", "flip", "none", "resized-crop"]
    image_size: int
    workers: int | None
    skip_bad_images: bool
    packed: str | None
    data_root: str | None
    download: bool
    views: int | None
    memory_budget: float
    memory_precision: Literal["float16", "float32", "uint8"]
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float | None
    momentum: float
    weight_decay: float | None
    schedule: Literal["auto", "step", "cosine", "constant"]
    milestones: tuple[float, ...]
    gamma: float
    warmup_epochs: float
    seed: int
    view_seed: int | None
    split_seed: int
    accelerator: str
    devices: int | Literal["auto"]
    precision: Literal["auto", "float32", "bf16"]
    compile: Literal["auto", "on", "off"] | tuple[Literal["teacher", "losses", "student"], ...]
    checkpoint_every: int | None
    validate_every: int
    progress: bool


class SettingsGiven(SettingsButMemory, total=False):
    """All of them."""

    memory: str | None


@functools.cache
def kinds_of_settings() -> dict[str, Any]:
    """The annotation of each setting."""
    return inspect.get_annotations(Settings, eval_str=True)
