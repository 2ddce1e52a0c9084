"""How many cores there are for this process. No heavy import."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from eyeline.ranks import processes, started


def usable_cores(root: Path = Path("/")) -> int:
    """Those that its affinity and its control groups (a container's) allow; at least 1.

    ``root``: where ``proc`` and ``sys`` lie.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        allowed = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):  # Linux
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return _at_most(allowed, root)


def own_cores(root: Path = Path("/")) -> int:
    """The share of this process, where several do one run together on this machine.

    torchrun and Lightning Fabric let all use what one may use; SLURM, LSF and MPI may bind each to cores of
    its own: then what one may use is its share already.
    """
    usable, launched = usable_cores(root), started()
    binds = launched is not None and launched.by != "torchrun"
    together = _at_most(os.cpu_count() or 1, root) if binds else usable
    return max(1, min(usable, together // processes()))


def _at_most(cores: int, root: Path) -> int:
    return max(1, math.ceil(min([cores, *_limits(root)])))


def _limits(root: Path) -> Iterator[float]:
    """The cores, and the time of how many, that this process's control groups have, and those around them."""
    groups = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for kind in ("cpu", "cpuset"):
            if controllers and kind not in controllers.split(","):
                continue
            top = groups / kind if controllers else groups  # version 1 has a tree for each controller
            place = top / group.strip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(top):
                    break
                with suppress(OSError, ValueError):  # there is no such file, or no limit: max
                    yield _limit(folder, kind, 1 if controllers else 2)


def _limit(folder: Path, kind: str, version: int) -> float:
    if kind == "cpuset":  # a list such as 0-3,8
        name = "cpuset.effective_cpus" if version == 1 else "cpuset.cpus.effective"
        ends = [part.partition("-") for part in (folder / name).read_text().split(",")]
        return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
    if version == 1:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    else:
        quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period) if int(quota) > 0 else math.inf
