"""In which environment a run was made."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eyeline import __version__
from eyeline.cores import usable_cores


def plain(value: Any) -> Any:
    """The same value of mappings, lists, strings, numbers and nothing else, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return f"<{type(value).__module__}.{type(value).__qualname__} object>"


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    packages = ("torch", "torchvision", "timm", "lightning-fabric", "numpy")
    versions: dict[str, str | None] = {"eyeline": __version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def with_now(before: Mapping[str, Any], changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The record of the environment in which a run began, and of every other in which it went on; with the
    settings that were changed there."""
    now = environment()
    if not before:
        return now
    resumed = list(before.get("resumed", []))
    latest = resumed[-1] if resumed else {name: before.get(name) for name in now}
    if changed:
        now["changed"] = plain(changed)
    return {**before, "resumed": [*resumed, now]} if now != latest else dict(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
