"""How the cost of attention transfer grows: with images a step, stages, resolution and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from measure import Result, Variant, interleave
from remembered import remembered_step
from step import Setup, eyeline_step, steps_a_figure
from study import Studies
from worker import Worker

STEPS: dict[str, Callable[..., Variant]] = {"live": eyeline_step, "remembered": remembered_step}
Sizes = Mapping[str, Sequence[int]]
"""By what grows: ``images``, ``stages``, ``resolution`` and ``seeds``."""


def measure_scaling(
    pair: tuple[str, str], sizes: Sizes, batch: int, side: int, rounds: int, device: str
) -> Iterator[Result]:
    """A step of ``at`` by images, stages and resolution; a study by seeds."""
    worker = Worker(
        _steps, pair, sizes, batch, side, device, keep=True, device=device, repeat=steps_a_figure(device)
    )
    steps = worker.variants()
    for what in ("images", "stages", "resolution"):
        variants = {name.split(": ")[1]: step for name, step in steps.items() if name.startswith(what)}
        title = f"A step of attention transfer by {what}, {' -> '.join(pair)}"
        result = _fitted(title, interleave(variants, rounds))
        result.notes = [f"{batch} images, {side} x {side}, all stages, where nothing else is said"]
        yield result
    worker.close()

    images = 2 * batch
    worker = Worker(_studies, pair, sizes["seeds"], images, side, device)
    result = _fitted(
        f"A study of attention transfer by seeds, {' -> '.join(pair)}",
        interleave(worker.variants(), rounds, warmup=0),
    )
    worker.close()
    result.notes = [f"the student alone and at, one after the other, {images} images of noise, 2 epochs"]
    yield result


def _steps(pair: tuple[str, str], sizes: Sizes, batch: int, side: int, device: str) -> dict[str, Variant]:
    variants = {}
    for kind, make in STEPS.items():
        for count in sizes["images"]:
            variants[f"images: {kind}, {count}"] = make(Setup(*pair, count, side, device), "at")
        for width in sizes["resolution"]:
            variants[f"resolution: {kind}, {width}"] = make(Setup(*pair, batch, width, device), "at")
        setup = Setup(*pair, batch, side, device)
        for stages in sizes["stages"]:
            layers = [f"{ours}:{theirs}" for ours, theirs in setup.layers[:stages]]
            variants[f"stages: {kind}, {stages}"] = make(setup, "at", layers=layers)
    return variants


def _studies(
    pair: tuple[str, str], seeds: Sequence[int], images: int, side: int, device: str
) -> dict[str, Variant]:
    studies = Studies(*pair, images, side, 2, ["at"], device)
    studies.run(1, remembers=True)  # warm
    return {
        f"{kind}, {count}": lambda remembers=kind == "remembered", count=count: studies.run(count, remembers)
        for kind in STEPS
        for count in seeds
    }


def _fitted(title: str, samples: Mapping[str, list[float]]) -> Result:
    """A result of figures named ``KIND, SIZE``, with the slope of each kind on logarithmic axes."""
    result = Result(title, "s", samples)
    for kind in STEPS:
        own = {name: values for name, values in samples.items() if name.startswith(f"{kind}, ")}
        sizes = [int(name.rpartition(", ")[2]) for name in own]
        medians = [statistics.median(values) for values in own.values()]
        slope, _ = np.polyfit(np.log(sizes), np.log(medians), 1)
        result.facts[f"slope, {kind}"] = float(slope)
    return result
