"""The runs of a study: several at once where that was measured to be faster, then one by one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from eyeline.console import say
from eyeline.cores import own_cores
from eyeline.errors import Diverged
from eyeline.experiment.experiment import Experiment, Student
from eyeline.experiment.place import Place, complete_recipe
from eyeline.experiment.resolve import named_student
from eyeline.files import read_json
from eyeline.memory.folder import Memory
from eyeline.runs.folder import DOCTOR, HARDWARE, RESULT
from eyeline.runs.provenance import plain
from eyeline.studies.apart import how_many, run_apart
from eyeline.studies.plan import Planned, has_names
from eyeline.training.run import train_run


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a study that are to be made, and what they have in common."""

    plan: Sequence[Planned]
    study: Experiment
    """With the student of the first seed, by any of the methods."""
    memory: Memory | None
    told: set[str] = dataclasses.field(default_factory=set)
    """The methods of which warnings have been said."""

    def train(self, parallel: int | None) -> list[dict[str, Any]]:
        """Make those that are not done; the result of each."""
        if self.study.device.fabric.world_size == 1:
            self._train_apart(parallel)
        first = self.study.student
        results, known = [], {self.study.settings.seed: first.fingerprint}
        for run in self.plan:
            student = named_student(first.given, self.study.data, run.settings)
            if run.settings.seed in known:  # of one seed they start the same
                vars(student)["fingerprint"] = known[run.settings.seed]
            known[run.settings.seed] = student.fingerprint
            results.append(self._train_one(run, student))
            self.told.add(run.name)
        return results

    def _train_one(self, run: Planned, student: Student) -> dict[str, Any]:
        study, method = self.study, run.arguments["method"]
        experiment = Experiment(student, study.data, run.settings, study.teacher, method, study.layers)
        # one that is finished stays, on whatever hardware it was made
        folder = Place(run.path, resume=True).folder(
            complete_recipe("distill", run.arguments, run.settings),
            experiment.inputs(),
            () if run.done else HARDWARE,
        )
        return train_run(
            folder,
            experiment,
            memory=self.memory,
            label=run.label,
            warn=lambda line: self._warn_of(run, line),
        ).result

    def _warn_of(self, run: Planned, line: str) -> None:
        """Say what a run warns of, if none of its method's has been told."""
        if run.name not in self.told:
            say(f"{run.name}: {line}")

    def _train_apart(self, parallel: int | None) -> None:
        """Train several at once, where that was asked for or was measured to be faster."""
        left = [run for run in self.plan if not run.done]
        methods = (run.arguments["method"] for run in left)
        if len(left) < 2 or not has_names(left[0].arguments, methods):
            return
        if parallel is None and self.study.device.torch_device.type == "cpu":
            parallel = self._how_many(len(left))
        if parallel is None or parallel == 1:
            return
        parallel = min(parallel, len(left))
        workers = self.study.settings.workers
        workers = max(1, own_cores() // parallel) if workers is None else workers
        tasks = [
            {
                **plain(run.arguments),
                **plain(dataclasses.asdict(run.settings)),
                "progress": False,
                "workers": workers,
                "out": str(run.path),
                "resume": True,
            }
            for run in left
        ]
        finished = itertools.count(1)

        def done(number: int) -> None:
            run = left[number]
            if (run.path / DOCTOR).exists():
                for line in read_json(run.path / DOCTOR, "what the losses of a run do")["warnings"]:
                    self._warn_of(run, line)
                self.told.add(run.name)
            if run.settings.progress:
                figures = read_json(run.path / RESULT, "the figures of a finished run")
                count = f"{next(finished)} of {len(left)} runs"
                say(f"{count}: {run.label}, validation {100 * figures['validation_accuracy']:.1f} %")

        try:
            run_apart(tasks, parallel, done)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped with {next(finished) - 1} of {len(left)} runs done; the others are kept as they "
                "are; continue with the same command and --resume"
            ) from None

    def _how_many(self, left: int) -> int:
        """How many at once are the fastest on this CPU."""
        device, settings = self.study.device, self.study.settings
        network = device.place(copy.deepcopy(self.study.student.network)).train()
        images = torch.zeros(settings.batch_size, *self.study.student.shape)
        images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with device.autocast():
                network(images).float().logsumexp(1).sum().backward()

        steps = settings.epochs * math.ceil(len(self.study.data.train) / settings.batch_size)
        count, said = how_many(step, left, steps)
        if said:
            say(said)
        return count


@contextmanager
def advising(path: Path) -> Iterator[None]:
    """Say of a study that stops how it goes on."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error}; without this method, or with another weight under another name, the study in {path} "
            "goes on with --resume"
        ) from error
    except KeyboardInterrupt as stopped:
        if stopped.args:
            raise
        raise KeyboardInterrupt(
            f"stopped; what is done is kept in {path}; continue with the same command and --resume"
        ) from None
