"""Which networks run compiled: as the settings say, or where it was measured to pay for a run so long."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

LONG_RUN = 600.0
"""Seconds of the teacher's forward passes from which compiling it is tried on a CPU: it takes half a minute
at first, and saves about a tenth of them."""
_FEW_STEPS = 200  # in which to measure would cost more than it could tell
_TIMED = 3


def compile_networks(
    student: nn.Module | None,
    teacher: nn.Module | None,
    mode: str,
    device: torch.device,
    ask: Callable[[int], object],
    sizes: Sequence[int],
    steps: int,
    decided: bool | None = None,
) -> tuple[bool, str]:
    """Compile networks, or leave them as they are.

    On a GPU both run compiled. On a CPU the student gains next to nothing; the teacher, whose weights and
    batch norm are folded into constants, gains more: with ``auto`` it is compiled for a long run, timed
    against itself, and stays compiled if it is faster.

    Args:
        mode: ``on``, ``off`` or ``auto``.
        ask: asks of the teacher what a step does, for a number of images.
        sizes: the batches' numbers of images, the usual one first.
        steps: how often the teacher will be asked.
        decided: what ``auto`` chose when the run began.

    Returns:
        Whether anything runs compiled, and a line that says why (empty: nothing worth saying).
    """
    if mode == "off":
        return False, ""
    if device.type != "cpu":
        if mode == "auto" and device.type != "cuda":
            return False, ""
        for network in (student, teacher):
            if network is not None:
                network.compile()
        return True, ""
    _keep_compiled_code()
    if mode == "on":
        if student is not None:
            student.compile()
        if teacher is not None:
            _freeze(teacher, ask, sizes)
        return True, ""
    if teacher is None or decided is False or (decided is None and steps < _FEW_STEPS):
        return False, ""
    if decided:
        _freeze(teacher, ask, sizes)
        return True, ""
    if teacher._compiled_call_impl is not None:  # by its owner
        return False, ""
    before = _seconds(ask, sizes[0])
    if before * steps < LONG_RUN:
        return False, ""
    began = time.perf_counter()
    try:
        _freeze(teacher, ask, sizes)
    except Exception as error:  # a compiler may fail in many ways; the run does not need it
        teacher._compiled_call_impl = None
        return False, f"compile=auto: the teacher cannot be compiled ({type(error).__name__}), runs as it is"
    took = time.perf_counter() - began
    now = _seconds(ask, sizes[0])
    if now >= before:
        teacher._compiled_call_impl = None
        return (
            False,
            f"compile=auto: compiled, the teacher takes {now / before:.2f} of its time: runs as it is",
        )
    saved = (before - now) * steps / 60
    return True, (
        f"compile=auto: the teacher was compiled in {took:.0f} s and takes {now / before:.2f} of its time, "
        f"which saves {saved:.0f} minutes of this run"
    )


@contextmanager
def restored(*networks: nn.Module | None) -> Iterator[None]:
    """Afterwards the networks run as they did before, compiled by their owner or not."""
    before = [(network, network._compiled_call_impl) for network in networks if network is not None]
    try:
        yield
    finally:
        for network, call in before:
            network._compiled_call_impl = call  # torch has no public way back


def _freeze(teacher: nn.Module, ask: Callable[[int], object], sizes: Sequence[int]) -> None:
    from torch._inductor import config

    teacher.compile(dynamic=False)
    # only here: the student's weights must never become constants
    with config.patch(freezing=True):
        for size in sizes:
            ask(size)


def _seconds(ask: Callable[[int], object], size: int) -> float:
    ask(size)
    times = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        ask(size)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _keep_compiled_code() -> None:
    """In the user's cache instead of the temporary folder, so that the next run starts at once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eyeline" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
