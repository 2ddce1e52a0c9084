"""What the C library's allocator costs a training step on a CPU: freed memory kept, and huge pages.

A large block goes back to the system when it is freed, and every page of the next one is a fault. Each way of
allocating lives in a process of its own, as it is set for a process; the processes take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

from eyeline.engine.allocator import keep_freed_memory
from measure import Result, Variant, interleave

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Read by torch: blocks of 2 MB and more are aligned and advised to lie on huge pages."""


def measure_allocator(pair: tuple[Any, Any], batch: int, side: int, rounds: int) -> Result:
    """A step of attention transfer under each way of allocating."""
    context = multiprocessing.get_context("spawn")
    ways: dict[str, tuple[bool, dict[str, str]]] = {
        "default": (False, {}),
        "kept": (True, {}),
        "huge pages": (False, HUGE_PAGES),
        "kept, huge pages": (True, HUGE_PAGES),
    }
    processes, variants = [], {}
    for name, (keep, environment) in ways.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, keep, pair, batch, side), daemon=True)
        before = dict(os.environ)
        os.environ.update(environment)
        process.start()
        os.environ.clear()
        os.environ.update(before)
        theirs.close()
        ours.recv()
        processes.append((process, ours))
        variants[name] = _ask(ours)
    samples = interleave(variants, rounds, warmup=3)
    for process, connection in processes:
        connection.send(None)
        process.join()
    result = Result(f"Allocator, a step of attention transfer, batch {batch}", "s", samples)
    for name in list(ways)[1:]:
        result.ratio(name, "default")
    return result


def _ask(connection: Connection) -> Variant:
    def step() -> float:
        connection.send("step")
        return connection.recv()

    return step


def _serve(connection: Connection, keep: bool, pair: tuple[Any, Any], batch: int, side: int) -> None:
    if keep and not keep_freed_memory():
        raise RuntimeError("mallopt is not available: this comparison is for Linux with glibc")
    from step import Setup, eyeline_step

    step = eyeline_step(Setup(*pair, batch, side, "cpu"), "at")
    connection.send("ready")
    while connection.recv() is not None:
        start = time.perf_counter()
        step()
        connection.send(time.perf_counter() - start)
