"""Ctrl-C and SIGTERM as a wish, so that a run ends with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(first: bool = True) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the step; a second one stops at once.

    Of several processes the first decides; the others leave it to that one to end them.
    """
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    kept = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, on_signal if first else signal.SIG_IGN)
    except ValueError:  # not in the main thread: signals are not ours to take
        pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
