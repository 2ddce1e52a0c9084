"""Which of the processes that do one run together this one is. No heavy import."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

_LAUNCHERS = {
    # what says in how many processes one started a program, and which this is; the first that is set counts,
    # as in Lightning Fabric: torchrun may be used inside of SLURM, and the tasks of SLURM may know of MPI
    "torchrun": ("WORLD_SIZE", "RANK"),
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID"),
    "LSF": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
}


class Started(NamedTuple):
    """Processes that a launcher started together."""

    by: str
    processes: int
    rank: int


def started() -> Started | None:
    """How this process was started with others; None if it was started alone, or by Lightning Fabric."""
    for by, (size, rank) in _LAUNCHERS.items():
        if by == "SLURM" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            continue  # a shell in which one starts things oneself, as Lightning Fabric has it
        if rank in os.environ and int(os.environ.get(size, 1)) > 1:
            return Started(by, int(os.environ[size]), int(os.environ[rank]))
    return None


def processes() -> int:
    """How many do one run together; all of them on this machine."""
    if (launched := started()) is not None:
        return launched.processes
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1  # Fabric's launcher


def is_main_process() -> bool:
    """Whether this process writes and speaks: of several that do one run together, one does."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    if (launched := started()) is not None:
        return launched.rank == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("LOCAL_RANK", "NODE_RANK"))  # Fabric's launcher
