from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eyeline.cores import own_cores, usable_cores
from eyeline.data.batches import evaluation_batches
from eyeline.data.packed import each_decoded
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import FileSplit
from eyeline.experiment.experiment import Experiment, Student
from eyeline.studies import runs
from eyeline.studies.plan import Planned
from tiny import SETTINGS, TinyNet, resolved, tiny_data


@pytest.fixture(params=["Python 3.13", "Python 3.11"])
def affinity(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, 12 of which are for this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 12, raising=False)
    if request.param == "Python 3.11":
        monkeypatch.delattr(os, "process_cpu_count")


def written(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


VERSION_2 = {"proc__self__cgroup": "0::/a/b\n"}
VERSION_1 = {"proc__self__cgroup": "4:memory:/m\n3:cpu,cpuacct:/docker/x\n0::/\n"}
TOP = "sys__fs__cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 12),
        ({**VERSION_2, f"{TOP}__a__b__cpu_dot_max": "max 100000\n"}, 12),
        ({**VERSION_2, f"{TOP}__a__b__cpu_dot_max": "400000 100000\n"}, 4),
        ({**VERSION_2, f"{TOP}__a__b__cpu_dot_max": "150000 100000\n"}, 2),
        ({**VERSION_2, f"{TOP}__a__b__cpu_dot_max": "1000 100000\n"}, 1),
        ({**VERSION_2, f"{TOP}__a__b__cpu_dot_max": "1600000 100000\n"}, 12),
        # of the group around, and of the root, as in a container
        ({**VERSION_2, f"{TOP}__a__cpu_dot_max": "300000 100000\n"}, 3),
        ({**VERSION_2, f"{TOP}__cpu_dot_max": "100000 50000\n", f"{TOP}__a__cpu_dot_max": "max 1\n"}, 2),
        ({"proc__self__cgroup": "0::/../..\n", f"{TOP}__cpu_dot_max": "100000 50000\n"}, 2),
        # of the cores themselves
        ({**VERSION_2, f"{TOP}__a__cpuset_dot_cpus_dot_effective": "0-3,8,10-11\n"}, 7),
        ({**VERSION_2, f"{TOP}__a__b__cpuset_dot_cpus_dot_effective": "\n"}, 12),
        ({"proc__self__cgroup": "3:cpuset:/x\n", f"{TOP}__cpuset__x__cpuset_dot_effective_cpus": "4-8\n"}, 5),
        # nothing of another tree
        ({**VERSION_2, "sys__fs__cpu_dot_max": "100000 100000\n"}, 12),
        (
            {
                **VERSION_1,
                **{f"{TOP}__cpu__m__cpu_dot_cfs_{which}_us": "1\n" for which in ("quota", "period")},
                f"{TOP}__cpu__docker__x__cpu_dot_cfs_quota_us": "500000\n",
                f"{TOP}__cpu__docker__x__cpu_dot_cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                **VERSION_1,
                f"{TOP}__cpu__cpu_dot_cfs_quota_us": "-1\n",
                f"{TOP}__cpu__cpu_dot_cfs_period_us": "100000\n",
            },
            12,
        ),
    ],
)
def test_the_cores_that_a_process_may_use(
    files: dict[str, str], expected: int, tmp_path: Path, affinity: None
) -> None:
    assert usable_cores(written(tmp_path, **files)) == expected


def test_those_of_this_process_are_at_most_the_machines() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
FABRIC = {"LOCAL_RANK": "1", "WORLD_SIZE": "5"}


@pytest.mark.parametrize(
    ("variables", "machine", "group", "expected"),
    [
        ({}, 64, None, 12),
        ({"WORLD_SIZE": "4"}, 64, None, 12),
        # these never bind: the 12 cores are of all processes
        (TORCHRUN, 64, None, 3),
        (FABRIC, 64, None, 2),
        ({**MPI, **TORCHRUN}, 64, None, 3),
        # each has 12 of the 64 for itself, 4 groups of 12 at least
        (SLURM, 64, None, 12),
        (MPI, 64, None, 12),
        # two share 12 of 24; all share the 12 of the machine, or of the container
        (MPI, 24, None, 6),
        (SLURM, 12, None, 3),
        (SLURM, 64, "0-11", 3),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": "100"}, 64, None, 1),
    ],
)
def test_processes_share_them(
    variables: dict[str, str],
    machine: int,
    group: str | None,
    expected: int,
    affinity: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in {**SLURM, **MPI, **TORCHRUN}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    files = {} if group is None else {**VERSION_2, f"{TOP}__a__cpuset_dot_cpus_dot_effective": group}
    assert own_cores(written(tmp_path, **files)) == expected


def test_they_decode_images_where_nobody_says_how_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pools: list[int] = []
    plain = ThreadPoolExecutor.__init__
    monkeypatch.setattr(ThreadPoolExecutor, "__init__", lambda self, n: (pools.append(n), plain(self, n))[1])
    for module in ("batches", "packed"):
        monkeypatch.setattr(f"eyeline.data.{module}.own_cores", lambda: 3)
    split = FileSplit((tmp_path / "a.png",), torch.zeros(1, dtype=torch.int64))
    loaders: list[int] = []
    monkeypatch.setattr(
        "eyeline.data.batches.DataLoader",
        lambda files, **options: loaders.append(options["num_workers"]) or [],
    )
    for workers in (None, 2):
        list(evaluation_batches(split, Normalization((0.0,) * 3, (1.0,) * 3), workers=workers))
        list(each_decoded([tmp_path / "a.png"], workers, lambda image: image))
    assert loaders == pools == [3, 2]


def test_runs_at_once_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_apart(tasks: list[dict[str, Any]], processes: int, done: Any) -> None:
        given.extend((task["workers"], processes) for task in tasks)

    monkeypatch.setattr(runs, "own_cores", lambda: 7)
    monkeypatch.setattr(runs, "run_apart", run_apart)
    arguments = {"student": "wrn_10_1", "teacher": "wrn_16_2.fashion_mnist", "data": "fashion_mnist_sample"}
    arguments["method"] = "kd"
    for workers in (None, 5):
        settings = resolved(**SETTINGS, workers=workers)
        plan = [Planned("kd", "", tmp_path / str(seed), arguments, settings) for seed in range(3)]
        student = Student(TinyNet, TinyNet(), (1, 12, 12))
        runs.Runs(plan, Experiment(student, tiny_data(), settings), None)._train_apart(4)
    assert given == [(2, 3)] * 3 + [(5, 3)] * 3
