"""A process that does runs one after the other for a study: ``python -m eyeline.studies.worker``.

The arguments of ``distill`` a line on the standard input, ``[error, message]`` a line on the standard output.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from typing import Any, TextIO

from eyeline.console import console
from eyeline.errors import InputError, TrainingStopped
from eyeline.verbs.distill import distill


def main() -> None:
    # files of their own: what libraries print is no answer, and what they fork closes sys.stdin,
    # which would wait for the thread that reads it
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    console.quiet = True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell had it ignored
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, tasks), daemon=True).start()
    try:
        while (line := tasks.get()) is not None:
            print(json.dumps(_do(json.loads(line))), file=answers, flush=True)
    except KeyboardInterrupt:
        pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends


def _listen(lines: TextIO, tasks: queue.SimpleQueue[str | None]) -> None:
    for line in lines:
        tasks.put(line)
    tasks.put(None)  # a signal that comes just before it waits for a task would be lost
    os.kill(os.getpid(), signal.SIGINT)  # nobody waits for an answer: stop as for Ctrl-C, with a checkpoint


def _do(task: dict[str, Any]) -> tuple[str | None, str]:
    try:
        distill(**task)
    except (InputError, TrainingStopped) as error:
        return type(error).__name__, str(error)
    return None, ""


if __name__ == "__main__":
    main()
