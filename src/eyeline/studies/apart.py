"""Several runs at once, in processes of their own that share the cores.

A small network cannot use many cores: its operations are too short to be divided. Several of them can.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event
from typing import Any

import torch

from eyeline.errors import Diverged, InputError, TrainingStopped

START_UP = 6.0
"""Seconds that a process takes to its first step."""

WORTHWHILE = 1.25
"""How many times as fast several at once must be by the measurement of one: they hinder one another."""

_ERRORS = {error.__name__: error for error in (InputError, TrainingStopped, Diverged)}


def how_many(step: Callable[[], object], runs: int, steps: int) -> tuple[int, str]:
    """How many of ``runs`` runs of ``steps`` steps to train at once on a CPU, and a line that says why.

    A step is timed with all the threads and with those that each of 2, 4 or 8 runs would have.
    """
    threads = torch.get_num_threads()
    counts = [count for count in (1, 2, 4, 8) if count <= min(threads, runs)]  # each has its own data
    if len(counts) == 1:
        return 1, ""
    seconds = {}
    try:
        for count in counts:
            torch.set_num_threads(threads // count)
            step()
            seconds[count] = min(_seconds(step) for _ in range(5)) / count
    finally:
        torch.set_num_threads(threads)
    best = min(seconds, key=seconds.__getitem__)
    gain = seconds[1] / seconds[best]
    saved = steps * runs * (seconds[1] - seconds[best]) - START_UP
    if gain < WORTHWHILE or saved < START_UP:
        return 1, ""
    each = threads // best
    return (
        best,
        f"{best} runs at once, of {each} thread{'s' * (each > 1)} each: up to {gain:.1f} times as fast",
    )


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def run_apart(tasks: Sequence[Mapping[str, Any]], processes: int, done: Callable[[int], None]) -> None:
    """Let so many workers (``studies/worker.py``) do the tasks; ``done`` is told the index of each that is.

    Raises the first error of a task, after the other workers have stopped where they were, to be resumed.
    A worker that ends by itself is such an error: the system may have killed it for the memory it took.
    """
    waiting = deque(enumerate(tasks))
    stop = Event()
    workers: list[subprocess.Popen[str]] = []
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        # an empty entry is the current folder, where data may lie, as is what -m adds without -P
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }

    def serve() -> None:
        command = [sys.executable, "-P", "-m", "eyeline.studies.worker"]
        pipe = subprocess.PIPE
        # in a session of its own: Ctrl-C in the terminal is for this process, which then ends its input
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            workers.append(worker)
            while not stop.is_set():
                try:
                    number, task = waiting.popleft()
                except IndexError:
                    return
                try:
                    worker.stdin.write(json.dumps(task) + "\n")
                    worker.stdin.flush()
                except BrokenPipeError:  # it has ended: there is no answer either
                    with contextlib.suppress(BrokenPipeError):
                        worker.stdin.close()
                answer = worker.stdout.readline()
                if stop.is_set():
                    return
                if not answer:
                    raise TrainingStopped(_why_ended(worker.wait()))
                error, message = json.loads(answer)
                if error is not None:
                    raise _ERRORS[error](message)
                done(number)

    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(serve) for _ in range(processes)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            for worker in workers:  # one whose input ends stops after its step, and keeps a checkpoint
                assert worker.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.close()


def _why_ended(status: int) -> str:
    how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
    return (
        f"a process that trained {how}; what the runs have kept is there: continue with the same command and "
        "--resume, where memory was short with --parallel 1"
    )
