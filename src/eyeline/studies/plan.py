"""What a study compares: its methods, its seeds, and the runs that it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyeline.device import Device
from eyeline.errors import InputError
from eyeline.experiment.experiment import BASELINE, Experiment
from eyeline.experiment.place import Place, as_begun, file_name
from eyeline.names import has_own_losses
from eyeline.objective.method import method_name, resolve_method
from eyeline.runs.folder import RESULT, is_ours
from eyeline.settings import Settings


@dataclass(frozen=True)
class Planned:
    """A run of a study that is to be made."""

    name: str
    """Of its method."""
    label: str
    path: Path
    arguments: dict[str, Any]
    """Of the verb ``distill``, but for the settings."""
    settings: Settings

    @property
    def done(self) -> bool:
        return (self.path / RESULT).exists()


def planned_runs(recipe: Mapping[str, Any], study: Experiment, path: Path) -> list[Planned]:
    """The runs of a study with this recipe, whose methods and seeds are spelled out, in the order of time."""
    plan, seeds = [], recipe["seeds"]
    networks = {name: recipe[name] for name in ("student", "teacher", "data")}
    for number, seed in enumerate(seeds, 1):
        for name, method in recipe["methods"].items():
            place = Place(path / file_name(name) / f"seed-{seed}", resume=True)
            settings = as_begun(dataclasses.replace(study.settings, seed=seed), study.data, place)
            # in the order of the verb, so that a recipe is the same whichever process writes it
            arguments = {**networks, "method": method, "layers": recipe["layers"], "student_weights": None}
            arguments["teacher_weights"] = recipe["teacher_weights"]
            label = f"{name}, seed {seed} ({number}/{len(seeds)})"
            plan.append(Planned(name, label, place.path, arguments, settings))
    return plan


def named_methods(given: Sequence[Any] | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> resolved method, the student alone first."""
    given = [given] if isinstance(given, str) else given
    named = dict(given) if isinstance(given, Mapping) else {method_name(method): method for method in given}
    if not isinstance(given, Mapping) and len(named) < len(given):
        raise InputError(
            f"methods {list(given)!r} name one method twice; give a mapping with a name for each"
        )
    for name, method in named.items():
        if not isinstance(name, str) or not file_name(name).strip(".") or is_ours(file_name(name)):
            raise InputError(
                f"a method of the study is called {name!r}; expected a name that makes a folder, and not one "
                "of eyeline's own files or folders"
            )
        if name == BASELINE and resolve_method(method) != resolve_method(BASELINE):
            raise InputError(f"{BASELINE!r} is the student alone; give {method!r} another name")
    named.pop(BASELINE, None)
    return {BASELINE: resolve_method(BASELINE)} | {
        name: resolve_method(method) for name, method in named.items()
    }


def check_folders(methods: Mapping[str, Any]) -> None:
    """Refuse methods that would share a folder."""
    if len({file_name(name).casefold() for name in methods}) < len(methods):
        raise InputError(
            f"methods {list(methods)} have names that make one folder; expected names that differ"
        )


def listed_seeds(given: int | Sequence[int]) -> list[int]:
    """The seeds: a number of them, or themselves."""
    seeds = list(range(given)) if isinstance(given, int) else list(given)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are {given!r}; expected a number of at least 1, or different seeds")
    return seeds


def check_parallel(parallel: int | None, recipe: Mapping[str, Any], settings: Settings) -> None:
    """Refuse several runs at once where they cannot be."""
    if parallel is None or parallel == 1:
        return
    if parallel < 1:
        raise InputError(f"parallel is {parallel}; expected at least 1")
    if not has_names(recipe, recipe["methods"].values()):
        raise InputError(
            f"parallel is {parallel}: such runs are trained in other processes, which need names of student, "
            "teacher and data, and eyeline's own losses; a Python object was given, or a loss of yours"
        )
    if Device.of(settings).fabric.world_size > 1:
        raise InputError(
            f"parallel is {parallel}: several runs at once are for one device a run, not several"
        )


def has_names(arguments: Mapping[str, Any], methods: Iterable[Any]) -> bool:
    """Whether another process can make all that runs with these arguments and methods need."""
    named = all(isinstance(arguments[what], str) for what in ("student", "teacher", "data"))
    return named and all(map(has_own_losses, methods))
