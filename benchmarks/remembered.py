"""A training step with the teacher's targets remembered: against the student alone, a live teacher, peers."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from eyeline.distiller import Distiller
from eyeline.losses import Target
from eyeline.memory.encoding import Encoded
from eyeline.memory.folder import Memory
from eyeline.memory.names import target_names
from measure import Result, Variant
from step import (
    COMPILED,
    WHAT_COMPILED,
    Setup,
    eyeline_distiller,
    eyeline_step,
    floor_of,
    interleave_steps,
    notes_on_others,
    other_workers,
    precision,
    steps_a_figure,
    student_alone,
    teacher_alone,
    update,
)
from worker import Worker

METHODS = ("at", "kd", "at+kd")
PAIRS = (
    ("wrn_40_2", "wrn_16_2", 128, 32),
    ("wrn_40_2", "wrn_16_1", 128, 32),
    ("wrn_16_2", "wrn_16_1", 128, 32),
    ("resnet34", "resnet18", 64, 64),
)
"""Teacher, student, images a batch, side."""
BATCHES = 20
"""Of which the memory holds rows: those of a step lie apart."""


def measure_remembered(
    pair: tuple[str, str], batch: int, side: int, rounds: int, device: str, compiled: bool
) -> Result:
    """The step of one pair, remembered and live; ``compiled``: also compiled as the engine does it."""
    shape = (*pair, batch, side, device)
    ours = Worker(_our_steps, *shape, compiled, keep=True, device=device, repeat=steps_a_figure(device))
    samples = interleave_steps([ours, *other_workers(*shape)], rounds)
    title = f"Training step, teacher remembered, {' -> '.join(pair)}, {side} x {side}, batch {batch}"
    result = Result(title, "s", samples)
    for end in COMPILED if compiled else ("",):
        alone, teacher = (f"{who} alone{floor_of(end)}" for who in ("student", "teacher"))
        for method in METHODS:
            remembered, live = (f"{method} {kind}{end}" for kind in ("remembered", "live"))
            result.ratio(remembered, alone)
            result.ratio(remembered, live)
            result.ratio(live, alone, teacher, label=f"floor{floor_of(end)}")
            for own in (remembered, live):
                for other in ("plain", "torchdistill", "torchdistill*"):
                    result.rate(own, f"{method} {other}", label=other)
        _add_study(result, end)
    result.notes = [
        f"eyeline, student alone and teacher alone: {precision(device)}, channels_last, freed memory kept",
        WHAT_COMPILED,
        "remembered: float16 rows of a view that is mapped from disk, decoded in the step",
        *notes_on_others(device),
        "floor: student alone (cross entropy, backward, SGD) + teacher alone (forward), in the same setting",
        "steps of a study: (student alone + kd + at + at+kd) of 5 seeds, remembered, and one pass of the "
        "teacher, to the same with a live teacher; from the times of this table",
    ]
    return result


def _add_study(result: Result, end: str, seeds: int = 5) -> None:
    """The steps of a study with memory to those without, from the times of single steps."""

    def rounds(*names: str) -> list[tuple[float, ...]]:
        return list(zip(*(result.samples[name] for name in names), strict=True))

    alone, teacher = (f"{who} alone{floor_of(end)}" for who in ("student", "teacher"))
    above = rounds(alone, *(f"{method} remembered{end}" for method in METHODS))
    below = rounds(alone, *(f"{method} live{end}" for method in METHODS))
    result.ratios[f"steps of a study, with memory / without{end}"] = [
        (seeds * sum(with_memory) + once) / (seeds * sum(without))
        for with_memory, without, (once,) in zip(above, below, rounds(teacher), strict=True)
    ]


def _our_steps(
    teacher: str, student: str, batch: int, side: int, device: str, compiled: bool
) -> dict[str, Variant]:
    setup = Setup(teacher, student, batch, side, device)
    variants: dict[str, Variant] = {}
    for end, parts in COMPILED.items() if compiled else [("", ())]:
        if floor_of(end) == end:
            variants[f"teacher alone{end}"] = teacher_alone(setup, parts)
            variants[f"student alone{end}"] = student_alone(setup, parts)
        for method in METHODS:
            variants[f"{method} live{end}"] = eyeline_step(setup, method, parts)
        for method in METHODS:
            variants[f"{method} remembered{end}"] = remembered_step(setup, method, parts)
    return variants


def remembered_step(
    setup: Setup, method: str, compiled: Collection[str] = (), layers: str | Sequence[str] = "auto"
) -> Variant:
    """The step with the targets of its images read from a memory, as the engine does."""
    distiller, optimizer = eyeline_distiller(setup, method, compiled, layers)
    names = target_names(distiller)
    stored = _remember(setup, distiller, names)
    batch = len(setup.images)
    within = torch.arange(batch)

    def step() -> None:
        # row i is of image i modulo batch
        indices = within + batch * torch.randint(BATCHES, (batch,))
        targets = {
            term: stored[name].rows(indices, setup.images.device).decode() for term, name in names.items()
        }
        with setup.device.autocast():
            loss = distiller(setup.images_last, setup.labels, targets).total
        update(optimizer, loss)

    return step


def _remember(setup: Setup, distiller: Distiller, names: dict[str, str]) -> dict[str, Encoded]:
    """The targets of the one batch, many times over, in the memory's precision, mapped from a file."""
    batch = len(setup.images)
    with setup.device.autocast():
        answered = distiller.target(setup.images_last, setup.labels)
    targets = {name: answered[term] for term, name in names.items()}

    def ask(lacking: Sequence[str]) -> Iterator[tuple[Tensor, dict[str, Target]]]:
        for first in range(0, batch * BATCHES, batch):
            yield torch.arange(first, first + batch), {name: targets[name] for name in lacking}

    with tempfile.TemporaryDirectory() as folder:  # what is mapped outlives its name
        precision = setup.settings.memory_precision
        return Memory(folder, {"memory_precision": precision}, batch * BATCHES).view(0, names.values(), ask)
