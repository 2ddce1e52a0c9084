"""What surrounds the steps: the engine's overhead, and the time from a command to its first step."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eyeline
from eyeline.data.splits import ImageData, MemorySplit
from eyeline.device import Device, resolved
from eyeline.distiller import Distiller
from eyeline.runs.folder import RunFolder
from eyeline.settings import Settings
from eyeline.training.optimizer import make_optimizer
from eyeline.training.streams import training_stream
from eyeline.training.trainer import fit
from measure import Result, Variant, interleave

BATCH, SHAPE, CLASSES = 128, (1, 8, 8), 10


def measure_engine(steps: int, rounds: int, device: str) -> Result:
    """What ``fit`` does in a step beside the step itself: a network so small that little else is left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            variants = {
                "fit": _fit(steps, device, Path(folder)),
                "distiller in Fabric": _loop(steps, device, wrapped=True),
                "bare loop": _loop(steps, device, wrapped=False),
            }
            samples = interleave(variants, rounds, warmup=1)
    finally:
        torch.set_num_threads(threads)
    for name, other in (("the host's work", "distiller in Fabric"), ("overhead of fit", "bare loop")):
        samples[name] = [a - b for a, b in zip(samples["fit"], samples[other], strict=True)]
    result = Result(f"The host's work in a step of a linear layer, {steps * BATCH:,} images", "s", samples)
    result.notes = [
        "seconds of the processor, on one thread: what other processes do beside it counts little",
        f"fit: an epoch of {steps} steps less one of {steps // 10}, so without start, validation, checkpoint",
        "bare loop: batches whose images are known, the same views, forward, cross entropy, backward, SGD",
        "distiller in Fabric: the same, of a Distiller set up by Fabric, as fit does",
        "the host's work: fit less that; overhead of fit: fit less the bare loop",
    ]
    return result


def noise(images: int, shape: tuple[int, int, int]) -> ImageData:
    """Training images of noise ``[C, H, W]``; validation and test have one a class alone."""
    channels, *side = shape

    def split(count: int) -> MemorySplit:
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        return MemorySplit(pixels, torch.arange(count) % CLASSES)

    classes = tuple(str(i) for i in range(CLASSES))
    mean, std = (0.5,) * channels, (0.25,) * channels
    splits = (split(count) for count in (images, CLASSES, CLASSES))
    return ImageData("noise", classes, mean, std, *splits, channels, (side[0], side[1]))


def _settings(device: str) -> Settings:
    options: dict[str, Any] = {"batch_size": BATCH, "learning_rate": 1e-3, "augmentation": "none"}
    options["compile"] = "off"
    return resolved(Settings.of(accelerator=device, epochs=1, progress=False, **options), files=False)


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), CLASSES))


def _fit(steps: int, device: str, folder: Path) -> Variant:
    long, short = (noise(count * BATCH, SHAPE) for count in (steps, steps // 10))

    def seconds(data: ImageData) -> float:
        distiller = Distiller(_network(), method="ce", input_shape=SHAPE)
        run = RunFolder(folder / "run", {"verb": "train"}, overwrite=True)
        with run.claimed():
            start = time.process_time()
            fit(distiller, data, _settings(device), run)
            return time.process_time() - start

    def per_step() -> float:
        return (seconds(long) - seconds(short)) / (steps - steps // 10)

    return per_step


def _loop(steps: int, device: str, *, wrapped: bool) -> Variant:
    data, settings = noise(steps * BATCH, SHAPE), _settings(device)
    place = Device.of(settings)
    network = _network().to(place.torch_device)
    optimizer = make_optimizer(settings, list(network.parameters()))
    if wrapped:
        distiller, optimizer = place.fabric.setup(
            Distiller(network, method="ce", input_shape=SHAPE), optimizer
        )

    stream = training_stream(data, settings, place)
    batches = [stream.indices(step)[1] for step in range(steps)]

    def per_step() -> float:
        start = time.process_time()
        for chosen in batches:
            indices = chosen.to(place.torch_device, non_blocking=True)
            images = stream.normalization(stream.view(indices, 0, 0))
            if wrapped:
                place.fabric.backward(distiller(images, stream.labels[indices]).total)
            else:
                with place.autocast():
                    loss = F.cross_entropy(network(images).float(), stream.labels[indices])
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.process_time() - start) / steps

    return per_step


# ends the process after the first step of any optimizer
_UNTIL_FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(77))
from eyeline.cli import main
sys.exit(main())
"""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often a network is given one image alone, the data are hashed, and a ``Distiller`` is made."""
    counts: Counter[str] = Counter()
    depth = 0
    call = nn.Module.__call__

    def passing(module: nn.Module, *args: Any, **options: Any) -> Any:
        nonlocal depth
        first = args[0] if args else None
        counts["one-image passes"] += not depth and isinstance(first, Tensor) and first.shape[:1] == (1,)
        depth += 1
        try:
            return call(module, *args, **options)
        finally:
            depth -= 1

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counts_it(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*args, **options)

        return counts_it

    with (
        patch.object(nn.Module, "__call__", passing),
        patch.object(ImageData, "_hash", counting("fingerprints", ImageData._hash)),
        patch.object(Distiller, "__init__", counting("distillers", Distiller.__init__)),
    ):
        yield counts


def measure_start(rounds: int, device: str) -> Result:
    """Seconds from a cold process to ``--help``, to the answer to a typo, and to the first step;
    and what a run, and a study of 8, do beside their steps."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        teacher = folder / "teacher"
        small = {"train_size": 10, "epochs": 1, "progress": False, "accelerator": device}
        eyeline.train("wrn_10_1", "fashion_mnist_sample", str(teacher), **small)

        typo = "-m eyeline distill wrn_10_1 wrn_16_2.fashion_mnist fashion_mnist_sample --method att"

        def first_step() -> None:
            arguments = ["wrn_10_1", str(teacher), "fashion_mnist_sample", str(folder / "student")]
            options = ["--accelerator", device, "--overwrite", "true"]
            _run(["-c", _UNTIL_FIRST_STEP, "distill", *arguments, *options], expected=77)

        given: tuple[Any, ...] = ("wrn_10_1", str(teacher), "fashion_mnist_sample")
        facts = {}
        with counted() as one:
            eyeline.distill(*given, str(folder / "run"), **small)
        with counted() as eight:
            eyeline.study(*given, str(folder / "study"), seeds=2, parallel=1, **small)
        for verb, counts in (("distill", one), ("a study of 8 runs", eight)):
            facts |= {f"{name}, {verb}": float(count) for name, count in sorted(counts.items())}
        samples = interleave(
            {
                "python": lambda: _run(["-c", "pass"]),
                "import torch": lambda: _run(["-c", "import torch"]),
                "eyeline --help": lambda: _run(["-m", "eyeline", "--help"]),
                "a typo": lambda: _run(typo.split(), expected=2),
                "eyeline distill, first step": first_step,
            },
            rounds,
        )
    result = Result("From the command to the first step, cold process", "s", samples, facts=facts)
    result.ratio("eyeline --help", "python")
    result.ratio("a typo", "python")
    result.ratio("eyeline distill, first step", "import torch")
    return result


def _run(arguments: list[str], expected: int = 0) -> None:
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
