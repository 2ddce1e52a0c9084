"""The folder of one run: what was asked, what happened, what came out. Every file is written whole or not."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from eyeline.errors import InputError, TrainingStopped
from eyeline.files import (
    LOCK,
    is_left_over,
    locked,
    read_json,
    write_atomically,
    write_json,
    write_text,
)
from eyeline.hashing import same
from eyeline.memory.folder import remove_memories
from eyeline.ranks import is_main_process
from eyeline.runs.provenance import plain, with_now

RECIPE = "recipe.yaml"

ENVIRONMENT = "environment.json"

METRICS = "metrics.csv"

CHECKPOINT = "last.ckpt"

RESULT = "result.json"

MODEL = "model.json"

STUDY = "study.json"

DOCTOR = "doctor.json"

_WEIGHTS = ("model.safetensors", "student.safetensors")

ANSWERS = "test_answers.safetensors"

TEACHER_ANSWERS = "teacher_answers.safetensors"

PAGE = "report.html"

_DRAWN = ("attention.png", PAGE)

_CURVES = "tensorboard"

_FILES = (
    *(ENVIRONMENT, METRICS, CHECKPOINT, RESULT, MODEL, STUDY, DOCTOR),
    *(*_WEIGHTS, ANSWERS, TEACHER_ANSWERS, *_DRAWN),
)

_OURS = {RECIPE, *_FILES, _CURVES, "memory", "teacher", "study"}  # the last three are the demo's folders

_MARK = "# eyeline "  # the first line of a recipe of ours

_COLUMNS = ("validation_accuracy", "validation_loss", "images_per_second")  # the last of metrics.csv

_PATIENCE = 10.0
"""Seconds that a run waits for the one that holds its folder."""

# what may differ between a run and its continuation
HARDWARE = ("accelerator", "devices", "precision", "compile")
"""Settings that a run goes on with as it began, unless others are given in so many words."""

_FREE = {
    *("out", "resume", "overwrite", "progress", "workers", "checkpoint_every", "data_root", "download"),
    *("parallel", "methods", "seeds"),  # each run of a study has a recipe of its own
    "memory_budget",  # decides the number of views, which the recipe holds
}


class RunFolder:
    """One run's folder. It is made, and the run's recipe written, when it is claimed.

    Args:
        path: where.
        recipe: the resolved arguments of the verb, with the verb under ``"verb"``.
        resume: continue a run that is there, with the same recipe.
        overwrite: replace a run that is there: its own files, and nothing else that lies in the folder.
        inputs: name -> record of what the recipe only names, as a hash of the data: a run goes on with the
            same alone (see :func:`~eyeline.hashing.same`).
        said: the settings of the hardware that were given in so many words, not as ``auto``. An unfinished
            run goes on with them where it began with others (``changed``: name -> before and now).

    Raises:
        InputError: a run is there and neither ``resume`` nor ``overwrite`` was given, it has another recipe
            or other inputs, or the folder holds something that is no run.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Mapping[str, Any] | None = None,
        said: Collection[str] = (),
    ) -> None:
        self.path = Path(path).expanduser()
        self.recipe, self.inputs = plain(recipe), dict(inputs or {})
        self.said, self.changed = said, dict[str, tuple[Any, Any]]()
        self.resume, self.overwrite = resume, overwrite
        if is_main_process():  # of several, it looks at the folder for all
            self._check()

    @contextmanager
    def claimed(self) -> Iterator[dict[str, Any] | None]:
        """The folder for this process alone; whether the run may be made is decided again. A finished run is
        read without that.

        Yields:
            The final figures of a run that is finished, which stays as it is; None if it is to be made.

        Raises:
            InputError: another process trains in it, it cannot be written, or as for the class.
        """
        if not is_main_process():
            yield None if self.overwrite else self.result
            return
        if not self.overwrite and self._check() is not None and (done := self.result) is not None:
            yield done
            return
        with claimed(self.path):
            self._begin()
            yield self.result

    def _check(self) -> dict[str, Any] | None:
        """The environment in which a run that is there began; None if there is none."""
        if not is_taken(self.path, resume=self.resume, overwrite=self.overwrite):
            return None
        if self.overwrite:
            return {}
        self._check_same_recipe()
        return self._check_same_inputs()

    def _begin(self) -> None:
        """Write what the run is, unless it is finished."""
        before = self._check()
        if before is not None and self.overwrite:
            remove_run(self.path)
        if self.result is not None:
            return
        try:
            self._write_recipe()
            record = with_now(before or {}, self.changed)
            write_json(self.path / ENVIRONMENT, {"inputs": self.inputs, **record})
        except TrainingStopped as error:
            raise InputError(str(error).partition(";")[0]) from error

    def _write_recipe(self) -> None:
        header = f"{_MARK}{self.recipe['verb']} --config {RECIPE} --out ANOTHER_FOLDER   repeats this run\n"
        if " object>'" in repr(self.recipe):
            header = (
                f"{_MARK}{self.recipe['verb']} of Python objects: repeat it in Python, with the same ones\n"
            )
        body = {k: v for k, v in self.recipe.items() if k != "verb"}
        write_text(self.path / RECIPE, header + yaml.safe_dump(body, sort_keys=False, allow_unicode=True))

    def settle(self, **settings: Any) -> None:
        """Write into the recipe what ``auto`` turned out to mean, once training has begun."""
        self.recipe |= plain(settings)
        if is_main_process():
            self._write_recipe()

    def _check_same_recipe(self) -> None:
        before, finished = read_recipe(self.path), (self.path / RESULT).exists()
        names = sorted((set(before) | set(self.recipe)) - _FREE)
        for folder in ("memory", "packed"):
            if None not in (before.get(folder), self.recipe.get(folder)):
                names = [name for name in names if name != folder]  # it may have moved, and checks itself
        differing = {
            n: (before.get(n), self.recipe.get(n)) for n in names if before.get(n) != self.recipe.get(n)
        }
        self.changed = {}
        for name in HARDWARE:
            if differing.get(name, (None,))[0] == "auto":  # it was stopped before that was known
                del differing[name]
            elif name in differing and finished != (name in self.said):
                was = differing.pop(name)
                self.changed |= {} if finished else {name: was}
        changed = [f"{name} was {was!r}, is {now!r}" for name, (was, now) in differing.items()]
        if changed:
            raise InputError(
                f"{self.path} holds a run with another recipe ({'; '.join(changed)}); "
                "resume with the same, replace it with --overwrite, or choose another folder with --out"
            )

    def _check_same_inputs(self) -> dict[str, Any]:
        path = self.path / ENVIRONMENT
        before = read_json(path, "the record of a run") if path.exists() else {}
        theirs = before.get("inputs", {})
        changed = [name for name, found in self.inputs.items() if not same(theirs.get(name, found), found)]
        if changed:
            # a module's own initial weights are those of its making
            hint = " (a function that makes it is seeded)" if {"student", "model"} & {*changed} else ""
            raise InputError(
                f"{self.path} holds a run that began with another content of {' and '.join(changed)}; give "
                f"what it began with{hint}, replace it with --overwrite, or choose another folder with --out"
            )
        return before

    @property
    def result(self) -> dict[str, Any] | None:
        """The final figures, once the run is done."""
        path = self.path / RESULT
        return read_json(path, "the result of a run") if path.exists() else None

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, whole or not at all."""
        # through memory, because a failed write inside torch.save tells nothing of its cause
        content = io.BytesIO()
        torch.save(dict(state), content)
        write_atomically(self.path / CHECKPOINT, content.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one.

        Raises:
            InputError: it is truncated or not ours.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] == 2:
                return state
        except Exception as error:  # torch.load fails in many ways on bytes that are no checkpoint
            raise InputError(
                f"checkpoint {path} is truncated or not one of eyeline ({type(error).__name__}); "
                "start anew with --overwrite"
            ) from error
        raise InputError(
            f"checkpoint {path} has format {state['format']}, expected 2: made by another version"
        )

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one an epoch."""
        path = self.path / METRICS
        if not path.exists():
            return []
        whole = ("epoch", "step")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
            figures = [{k: int(v) if k in whole else float(v) for k, v in row.items()} for row in rows]
            if all(name in row for row in figures for name in whole):
                return figures
            reason = "a row without epoch or step"
        except (ValueError, TypeError, csv.Error) as error:
            reason = str(error)
        raise InputError(f"{path} is damaged ({reason}); start anew with --overwrite")

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Replace ``metrics.csv``."""
        columns = [
            name for name in dict.fromkeys(name for row in rows for name in row) if name not in _COLUMNS
        ]
        columns += _COLUMNS
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / METRICS, text.getvalue())


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The folder of a run or a study for this process alone; made if it is not there.

    Raises:
        InputError: another process trains in it, or it cannot be written.
    """
    with ExitStack() as held:
        try:
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path, _PATIENCE))
        except TimeoutError:
            raise InputError(
                f"another process trains in {path}; wait for it, or choose another folder with --out"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot make the folder {path}: {error.strerror}; choose another with --out"
            ) from error
        try:
            for file in path.iterdir():
                if is_left_over(file) and file.name != LOCK:
                    file.unlink()
            yield
        finally:
            # not while others may wait to go on: on a network, who waits may not see that it lost its name
            if (path / RESULT).exists() or (path / STUDY).exists():
                with suppress(OSError):
                    (path / LOCK).unlink()


def is_taken(path: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether a run is there that is to be continued, or replaced.

    Raises:
        InputError: it is there and may be neither, or may be both, or the folder holds something else.
    """
    if resume and overwrite:
        raise InputError("resume and overwrite: a run can be continued or replaced, not both; give one")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; expected a folder for the run; choose another with --out")
    if not path.is_dir() or all(is_left_over(file) for file in path.iterdir()):
        return False
    if not is_run(path):
        raise InputError(f"{path} holds files that are no run of eyeline; choose another folder with --out")
    if not (resume or overwrite):
        raise InputError(
            f"{path} holds a run already; continue it with --resume, "
            "replace it with --overwrite, or choose another folder with --out"
        )
    return True


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe of the run in a folder, with its verb.

    Raises:
        InputError: it is damaged.
    """
    try:
        text = (path / RECIPE).read_text(encoding="utf-8")
        return {**yaml.safe_load(text), "verb": text.removeprefix(_MARK).split()[0]}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path / RECIPE} is damaged ({str(error).splitlines()[0]}); start anew with --overwrite"
        ) from error


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run or a study, finished or not."""
    try:
        return (path / RECIPE).read_text(encoding="utf-8", errors="replace").startswith(_MARK)
    except OSError:
        return False


def is_ours(name: str) -> bool:
    """Whether a file or folder of this name, in the folder of a run or a study, is one that eyeline makes."""
    return name.rstrip(".").casefold() in _OURS or is_left_over(Path(name))


def remove_run(path: Path) -> None:
    """Delete a run or a study that this process has claimed: what eyeline wrote. Other files stay.

    Raises:
        InputError: another process trains in a run of the study.
    """
    with ExitStack() as held:
        runs = [run for run in path.glob("*/seed-*") if is_run(run)]
        for run in runs:  # all before the first goes
            held.enter_context(claimed(run))
        for run in runs:
            remove_run(run)
            with suppress(OSError):  # not empty, or not in this system while it is locked
                (run / LOCK).unlink()
                run.rmdir()
                run.parent.rmdir()
    for name in _FILES:
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / _CURVES, ignore_errors=True)
    remove_memories(path)
    (path / RECIPE).unlink(missing_ok=True)  # last: until then the folder is known as a run
