from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eyeline.device import Device
from eyeline.errors import InputError
from eyeline.ranks import Started, is_main_process, started
from eyeline.settings import Settings

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
SLURM = {
    **{"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"},
    **{"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"},
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "1"}
LSF = {"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}
FABRIC = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}
SHELL = {**SLURM, "SLURM_JOB_NAME": "interactive"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "JSM_")) or name in {**TORCHRUN, **FABRIC}:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        (TORCHRUN, False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({**TORCHRUN, "RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, False),  # first of the second node
        (SLURM, False),
        ({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({**SLURM, "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, False),
        (SHELL, True),
        ({**SHELL, "SLURM_JOB_NAME": "bash"}, True),
        ({**SHELL, **FABRIC}, False),
        ({**SHELL, **TORCHRUN}, False),
        (OPEN_MPI, False),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0"}, True),
        (MPICH, False),
        ({**MPICH, "PMI_RANK": "0"}, True),
        (LSF, False),
        (FABRIC, False),
        ({**FABRIC, "LOCAL_RANK": "0"}, True),
        ({**FABRIC, "LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        # a launcher inside of another: the inner one counts
        ({**SLURM, **TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({**SLURM, "SLURM_PROCID": "0", **TORCHRUN}, False),
        ({**SLURM, "SLURM_PROCID": "0", **MPICH}, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", **FABRIC}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", **FABRIC}, False),
    ],
    ids=str,
)
def test_which_process_writes(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == expected


def test_torch_knows_once_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not is_main_process()


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        (
            SLURM,
            1,
            "SLURM started 2 processes, and this run is for 1; give --devices 2, or start one process",
        ),
        (TORCHRUN, 1, "torchrun started 2 processes, and this run is for 1"),
        (OPEN_MPI, 1, "Open MPI started 2 processes, and this run is for 1"),
        (OPEN_MPI, 2, "Open MPI started 2 processes, which Lightning Fabric does not see without mpi4py"),
        ({**TORCHRUN, "WORLD_SIZE": "3"}, 2, "cannot use .*devices=2"),
    ],
)
def test_processes_that_would_not_train_together_are_refused(
    variables: dict[str, str], devices: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started() == Started(message.partition(" started")[0], 2, 1) or "cannot" in message
    with pytest.raises(InputError, match=message):
        Device.of(Settings(accelerator="cpu", devices=devices))


@pytest.mark.whole
def test_the_tasks_of_slurm_make_one_run(tmp_path: Path, tiny_folder: str) -> None:
    """The first one alone writes, and speaks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["train", "wrn_10_1", tiny_folder, "--image_size=12", "--workers=0", "--batch_size=20"]
    words += ["--epochs=1", "--accelerator=cpu", "--devices=2", f"--out={tmp_path / 'run'}"]
    tasks = []
    for task in ("0", "1"):
        variables = {**SLURM, "SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_NODELIST": "127.0.0.1"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-m", "eyeline", *words]
        pipe = subprocess.PIPE
        tasks.append(
            subprocess.Popen(command, env={**os.environ, **variables}, stdout=pipe, stderr=pipe, text=True)
        )
    try:
        (out, _), (silent, _) = (task.communicate(timeout=600) for task in tasks)
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0]
    assert out.count("test accuracy") == 1
    assert silent == ""
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"]["train"] == 60
