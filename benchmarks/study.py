"""A whole study with the teacher's memory and without it; what the memory takes, and filling it."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence

import torch

import eyeline
from eyeline.console import console
from eyeline.models import create_model
from measure import Result, Variant, interleave
from process import CLASSES, noise
from step import Setup, teacher_alone
from worker import Worker

PAIRS = (("wrn_40_2", "wrn_16_1"), ("wrn_40_2", "wrn_16_2"))
"""Teacher and student."""
METHODS = ("kd", "at", "at+kd")
"""Beside the student alone."""
KINDS = {"with memory": True, "without memory": False}
BATCH = 128


class Studies:
    """Studies of one pair of networks on images of noise, each in a new folder."""

    def __init__(
        self,
        teacher: str,
        student: str,
        images: int,
        side: int,
        epochs: int,
        methods: Sequence[str],
        device: str,
    ) -> None:
        console.quiet = True
        self.images = images * epochs
        self.arguments = {
            "student": student,
            "teacher": create_model(teacher, CLASSES),
            "data": noise(images, (3, side, side)),
            "methods": list(methods),
            "epochs": epochs,
            "batch_size": BATCH,
            "learning_rate": 1e-3,  # on noise 0.1 may not stay finite
            "accelerator": device,
            "progress": False,
        }

    def run(self, seeds: int, remembers: bool) -> float:
        """Seconds of a study."""
        with tempfile.TemporaryDirectory() as folder:
            memory = {"memory": f"{folder}/memory"} if remembers else {}
            began = time.perf_counter()
            eyeline.study(**self.arguments, out=f"{folder}/study", seeds=seeds, **memory)
            return time.perf_counter() - began

    def fill(self) -> tuple[float, float]:
        """Seconds in which a memory is filled, and the bytes that a view of an image takes there."""
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            memory = eyeline.remember(**self.arguments, memory=f"{folder}/memory")
            seconds = time.perf_counter() - began
            return seconds, sum(file.stat().st_size for file in memory.glob("*/view-*")) / self.images


def measure_study(
    pair: tuple[str, str], images: int, side: int, epochs: int, seeds: int, rounds: int, device: str
) -> Result:
    """Wall clock of a study of the student alone, KD, AT and AT+KD, and the peak memory of its process."""
    workers = {
        kind: Worker(_study, *pair, images, side, epochs, seeds, remembers, device)
        for kind, remembers in KINDS.items()
    }
    variants = {kind: worker.variants() for kind, worker in workers.items()}
    samples = interleave({kind: own["study"] for kind, own in variants.items()}, rounds, warmup=0)
    title = f"A study of {seeds} seeds x (student alone, KD, AT, AT+KD), {' -> '.join(pair)}, {side} x {side}"
    result = Result(title, "s", samples)
    result.ratio("with memory", "without memory")
    for kind, own in variants.items():
        for what in ("peak RSS", "peak GPU memory"):
            if what in own:
                result.facts[f"{what} {kind}, bytes"] = own[what]() or 0.0
    for worker in workers.values():
        worker.close()
    result.notes = [
        f"{images} training images of noise, {epochs} epochs, batch {BATCH}; the rest of a run (start, 10 "
        "validation and 10 test images, files, the page) is in it, and weighs more than in a long one",
        "with memory: filled within the time, one view an epoch; all else by default, in a process each",
        "so short a run is not compiled: see 'steps of a study' of section remembered",
    ]
    return result


def _study(
    teacher: str,
    student: str,
    images: int,
    side: int,
    epochs: int,
    seeds: int,
    remembers: bool,
    device: str,
) -> dict[str, Variant]:
    Studies(teacher, student, BATCH // 8, side, 1, METHODS, device).run(1, remembers)  # warm
    studies = Studies(teacher, student, images, side, epochs, METHODS, device)
    variants: dict[str, Variant] = {
        "study": lambda: studies.run(seeds, remembers),
        "peak RSS": lambda: 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    if device == "cuda":
        variants["peak GPU memory"] = lambda: float(torch.cuda.max_memory_allocated())
    return variants


def measure_filling(pair: tuple[str, str], images: int, side: int, rounds: int, device: str) -> Result:
    """``eyeline.remember`` of one view of each image, for KD and AT, against the teacher's forward alone."""
    worker = Worker(_filling, *pair, images, side, device, keep=True, device=device)
    variants = worker.variants()
    size = variants.pop("bytes")
    samples = interleave(variants, rounds)
    result = Result(f"Filling a memory, {' -> '.join(pair)}, {side} x {side}", "s", samples)
    result.ratio("remember", "teacher alone")
    rates = sorted(images / seconds for seconds in samples["remember"])
    result.facts = {
        "fill rate, images a second, median": rates[len(rates) // 2],
        "memory, bytes a view an image": size() or 0.0,
    }
    worker.close()
    result.notes = [
        f"{images} images, one view, float16 maps and logits of {CLASSES} classes; from the call to its end",
        "teacher alone: its forward on as many images that lie ready",
    ]
    return result


def _filling(teacher: str, student: str, images: int, side: int, device: str) -> dict[str, Variant]:
    studies = Studies(teacher, student, images, side, 1, METHODS, device)
    setup = Setup(teacher, student, min(BATCH, images), side, device)
    forward = teacher_alone(setup)

    def alone() -> None:
        for _ in range(images // len(setup.images)):
            forward()

    return {"remember": lambda: studies.fill()[0], "teacher alone": alone, "bytes": lambda: studies.fill()[1]}


def measure_studies(quick: bool, device: str) -> Iterator[Result]:
    """The results of the section."""
    if quick:
        yield measure_study(("wrn_10_1", "wrn_10_1"), 8, 16, 1, 1, 2, device)
        yield measure_filling(("wrn_10_1", "wrn_10_1"), 8, 16, 2, device)
        return
    for pair in PAIRS:
        yield measure_study(pair, images=1280, side=32, epochs=3, seeds=5, rounds=3, device=device)
        yield measure_filling(pair, images=12800, side=32, rounds=5, device=device)


def measure_parallel(epochs: int, images: int, runs: int, rounds: int, device: str) -> Result:
    """Wall clock of a study whose runs are trained at once, over one after the other."""
    console.quiet = True

    def study(parallel: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            eyeline.study(
                "wrn_16_1",
                "wrn_16_2.fashion_mnist",
                "fashion_mnist_sample",
                f"{folder}/study",
                methods=["at"],
                memory=f"{folder}/memory",
                seeds=runs // 2,
                parallel=parallel,
                train_size=images,
                epochs=epochs,
                batch_size=32,
                validate_every=epochs,
                accelerator=device,
                progress=False,
            )
            return time.perf_counter() - began

    variants: dict[str, Variant] = {
        "two at once": lambda: study(2),
        "one after the other": lambda: study(1),
    }
    samples = interleave(variants, rounds, warmup=0)
    result = Result(f"A study of {runs} runs, WRN-16-1, batch 32", "s", samples)
    result.ratio("two at once", "one after the other")
    result.notes = [
        f"{runs // 2} seeds of the student alone and AT, {epochs} epochs of {images} images; teacher "
        "WRN-16-2, remembered; from the call to its end, the start of the processes included",
        "by itself a study measures which is faster; here both are asked for",
    ]
    return result
