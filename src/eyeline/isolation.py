"""What a verb leaves behind: the caller's process as it was, and one line where a library warns."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from textwrap import shorten
from typing import Any

from eyeline.ranks import is_main_process

# no heavy import: a mistake is answered before PyTorch is imported

SILENT = r"PIL\."
"""Modules whose warnings tell nothing: an image is read, or it is named with the reason why not."""
LIBRARIES = r"(torch|torchvision|timm|lightning_fabric|huggingface_hub|matplotlib|PIL)\b"
"""Whose log lines are said as warnings are."""
_MEANING = {
    # what a library warns of -> what it means here; nothing: it is no concern of the user's
    r"CUDA initialization: .*driver.* too old": "no GPU is used: its driver is too old for this PyTorch",
    r"CUDA initialization": "no GPU is used: CUDA does not start",
    r".*CUDA capability sm_\d+ (that )?is not compatible": "this PyTorch does not support the GPU",
    r"This DataLoader will create (\d+) worker process": (
        r"workers is \1, more than the cores that this process may use; fewer are faster"
    ),
    r"The `srun` command is available": "",
    r"TensorFloat32 tensor cores": "",
    r"No CUDA runtime is found": "",
    r"Glyph \d+ .*missing from": "the font of the pictures lacks a character of a name",
}


@contextmanager
def as_found(*given: Any) -> Iterator[None]:
    """Leave the caller's process as it is, however what runs in it ends.

    That is: environment variables, torch's random state, the current GPU, the filters of warnings, what is
    freed of memory; and of each network in ``given`` its device, memory format, modes, hooks, and which of
    its parameters are frozen. The rest (signals, threads, flags of libraries) is restored where it is set.
    """
    environment, torch = dict(os.environ), sys.modules.get("torch")
    together = _several_processes()
    with ExitStack() as networks, warnings_in_a_line():
        if torch is not None:
            from eyeline.observe import as_it_was

            draws = torch.get_rng_state()
            gpus = (
                (torch.cuda.current_device(), torch.cuda.get_rng_state_all())
                if torch.cuda.is_initialized()
                else None
            )
            for network in given:
                if isinstance(network, torch.nn.Module):
                    networks.enter_context(as_it_was(network))
        try:
            yield
        finally:
            if torch is not None:
                torch.set_rng_state(draws)
                if gpus is not None:
                    torch.cuda.set_device(gpus[0])
                    torch.cuda.set_rng_state_all(gpus[1])
            elif "torch" in sys.modules:
                sys.modules["torch"].default_generator.seed()  # as after its import, where nothing is seeded
            if (allocator := sys.modules.get("eyeline.training.allocator")) is not None:
                allocator.release_freed_memory()
            # the processes of a run on several devices go through the caller's program to its end
            if together or not _several_processes():
                for name in os.environ.keys() - environment.keys():
                    del os.environ[name]
                os.environ.update(environment)


def _several_processes() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Say what libraries warn of and log in a line each, once, without the place in their code."""
    record = logging.getLogRecordFactory()
    with warnings.catch_warnings():
        try:
            warn_in_a_line()
            yield
        finally:
            logging.setLogRecordFactory(record)


def warn_in_a_line() -> None:
    """The same, for the rest of this process. What the caller handles, warnings or log lines, stays so."""
    said: set[str] = set()
    theirs = [name for name, log in logging.root.manager.loggerDict.items() if _is_handled(log)]

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        for pattern, meaning in _MEANING.items():
            if (match := re.match(pattern, text)) is not None:
                text = match.expand(meaning)
        if text and text not in said and is_main_process():
            said.add(text)
            print(f"eyeline: warning: {shorten(text, 200, placeholder=' ...')}", file=sys.stderr)

    def record(name: str, level: int, *rest: Any, **more: Any) -> logging.LogRecord:
        line = logging.LogRecord(name, level, *rest, **more)
        # a library's own handler, which may not be there yet, is not heard
        callers = logging.root.handlers or any(f"{name}.".startswith(f"{each}.") for each in theirs)
        if level >= logging.WARNING and re.match(LIBRARIES, name) and not callers:
            if not re.match(SILENT, name):
                say(line.getMessage())
            line.levelno = -1
        return line

    warnings.filterwarnings("ignore", module=SILENT)
    if warnings.showwarning is getattr(warnings, "_showwarning_orig", None):
        warnings.showwarning = say
    if logging.getLogRecordFactory() is logging.LogRecord:
        logging.setLogRecordFactory(record)


def _is_handled(log: Any) -> bool:
    """Whether a logger has a handler of the caller's; libraries bring some that write to the terminal."""
    library = getattr(log, "name", "").partition(".")[0]
    brought = (logging.NullHandler, logging.StreamHandler)
    return any(
        type(handler).__module__.partition(".")[0] != library
        and (not isinstance(handler, brought) or isinstance(handler, logging.FileHandler))
        for handler in getattr(log, "handlers", ())
    )
