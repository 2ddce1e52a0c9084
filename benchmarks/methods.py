"""What a training step of each method costs, as a multiple of the student's own."""

from __future__ import annotations

from eyeline.distiller import Distiller
from eyeline.losses import LOSSES
from eyeline.memory.names import target_names
from measure import Result, Variant, interleave
from remembered import remembered_step
from step import Setup, eyeline_step, precision, steps_a_figure, student_alone
from worker import Worker

METHODS = (*LOSSES, "at+kd")


def measure_methods(pair: tuple[str, str], batch: int, side: int, rounds: int, device: str) -> Result:
    """The step of each method with a live teacher and, where that is possible, remembered."""
    worker = Worker(
        _steps, *pair, batch, side, device, keep=True, device=device, repeat=steps_a_figure(device)
    )
    samples = interleave(worker.variants(), rounds, warmup=2)
    worker.close()
    title = f"Training step of every method, {' -> '.join(pair)}, {side} x {side}, batch {batch}"
    result = Result(title, "s", samples)
    for method in METHODS:
        for kind in ("live", "remembered"):
            if f"{method} {kind}" in samples:
                result.ratio(f"{method} {kind}", "student alone")
    result.notes = [
        f"{precision(device)}, channels_last, freed memory kept, not compiled; default options",
        "student alone: cross entropy, backward, SGD, without eyeline's distiller",
    ]
    return result


def _steps(teacher: str, student: str, batch: int, side: int, device: str) -> dict[str, Variant]:
    setup = Setup(teacher, student, batch, side, device)
    variants = {"student alone": student_alone(setup)}
    for method in METHODS:
        variants[f"{method} live"] = eyeline_step(setup, method)
        if _remembers(setup, method):
            variants[f"{method} remembered"] = remembered_step(setup, method)
    return variants


def _remembers(setup: Setup, method: str) -> bool:
    """Whether a step needs a teacher, and does without it where its targets are remembered."""
    distiller = Distiller(*setup.networks(eyelines_format=True), method, input_shape=setup.shape)
    asked = distiller.objective.targeted.keys()
    distiller.close()
    return bool(asked) and asked == target_names(distiller).keys()
