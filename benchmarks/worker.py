"""Variants that live in a process of their own: how a process allocates memory is set for all of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from eyeline.training.allocator import keep_freed_memory
from measure import Variant


class Worker:
    """A process that makes variants and runs one at a time when asked; it waits in between.

    Args:
        make: a function of a module, which answers the variants by name.
        arguments: for it.
        keep: whether the C library keeps freed memory in that process, as ``eyeline.fit`` asks of it.
        environment: variables to set there.
        device: ``cuda``: a step ends when the GPU has ended it.
        repeat: steps that a figure is the mean of.
    """

    def __init__(
        self,
        make: Callable[..., Mapping[str, Variant]],
        *arguments: Any,
        keep: bool = False,
        environment: Mapping[str, str] | None = None,
        device: str = "cpu",
        repeat: int = 1,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update({"PYTHONSAFEPATH": "1"} | dict(environment or {}))
        self._process = context.Process(
            target=_serve, args=(theirs, keep, device, repeat, make, arguments), daemon=True
        )
        handler = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C is for this process, which ends that one
        self._process.start()
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(before)
        theirs.close()

    def variants(self) -> dict[str, Variant]:
        """Seconds of a step of each variant, as measured in the process; waits until they are made."""
        return {name: self._ask(name) for name in self._connection.recv()}

    def _ask(self, name: str) -> Variant:
        def step() -> float:
            self._connection.send(name)
            return self._connection.recv()

        return step

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


def _serve(
    connection: Connection,
    keep: bool,
    device: str,
    repeat: int,
    make: Callable[..., Mapping[str, Variant]],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # temporary folders are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if keep:
        keep_freed_memory()
    variants = make(*arguments)
    connection.send(list(variants))
    while (name := connection.recv()) is not None:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            answer = variants[name]()
        _wait(device)
        connection.send((time.perf_counter() - start) / repeat if answer is None else answer)


def _end_with_parent() -> None:
    """Also where that one was killed: a step, or compiling, would go on for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
