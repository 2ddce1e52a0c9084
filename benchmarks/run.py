"""Measure eyeline against floors and peers: ``python benchmarks/run.py [--quick] [--out FILE.json]``.

Every comparison is interleaved in one run and reported as a ratio; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eyeline.engine.run import environment, write_json
from measure import Result, summary
from step import PAIRS, measure_attention, measure_step

SECTIONS = ("step", "attention", "augmentation", "files", "engine", "start", "allocator")
DEFAULT = SECTIONS[:-1]


def measure(sections: list[str], quick: bool, device: str) -> Iterator[Result]:
    """The results of the chosen sections, one after the other."""

    def size(full: int, small: int) -> int:
        return small if quick else full

    batch, side = size(128, 4), size(32, 16)
    pairs = (((10, 1), (10, 1)),) if quick else PAIRS
    if "step" in sections:
        for pair in pairs:
            yield measure_step(pair, batch, side, rounds=size(15, 2), device=device, compiled=not quick)
    if "attention" in sections:
        yield measure_attention(batch, side, rounds=size(100, 2), device=device)
    if "augmentation" in sections:
        from pipeline import measure_augmentation

        for channels in (3, 1):
            yield measure_augmentation(
                channels,
                images=size(50_000, 64),
                side=32,
                batch=size(128, 8),
                batches=size(10, 2),
                rounds=size(15, 2),
                device=device,
            )
    if "files" in sections:
        from pipeline import measure_files

        # an epoch is a whole number of batches, all of one size
        yield measure_files(size(400, 20), size(90, 9), size(4, 1), rounds=size(7, 2), device=device)
    if "engine" in sections:
        from process import measure_engine

        yield measure_engine(steps=size(2000, 20), rounds=size(10, 2), device=device)
    if "start" in sections:
        from process import measure_start

        yield measure_start(rounds=size(7, 1), device=device)
    if "allocator" in sections:
        from allocator import measure_allocator

        yield measure_allocator(pairs[0], batch, side, rounds=size(30, 2))


def show(result: Result, console: Console) -> None:
    """Print a result as a table of figures and one of ratios."""
    unit, write = _unit(result)
    console.print(Text(result.title, style="bold"))
    table = Table(box=box.SIMPLE, width=78, pad_edge=False)
    table.add_column("", ratio=1)
    for column in (f"median, {unit}", "lower quartile", "upper quartile"):
        table.add_column(column, justify="right", no_wrap=True)
    for names, write_one in ((result.samples, write), (result.ratios, lambda ratio: f"x {ratio:.3g}")):
        for name, values in names.items():
            figures = summary(values)
            shown = [write_one(figures[key]) for key in ("median", "lower_quartile", "upper_quartile")]
            table.add_row(name, *shown)
        table.add_section()
    console.print(table)
    for note in result.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _unit(result: Result) -> tuple[str, Callable[[float], str]]:
    """The unit that the figures are shown in, and how."""
    if result.unit != "s":
        return result.unit, lambda value: f"{value:,.0f}"
    largest = max(max(values) for values in result.samples.values())
    scale, name = (1, "s") if largest >= 2 else (1e3, "ms") if largest >= 2e-3 else (1e6, "µs")
    return name, lambda value: f"{value * scale:,.2f}"


def record(results: list[Result], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is stored: where, when and of which commit, then the results."""
    return {
        "kind": "benchmark",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "quick": arguments.quick,
        "device": arguments.device,
        "environment": {k: v for k, v in environment().items() if k != "command"} | {"peers": _peers()},
        "results": [result.as_json() for result in results],
    }


def _commit() -> str | None:
    """The commit of the code, with ``+`` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=where, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _peers() -> dict[str, str | None]:
    try:
        return {"torchdistill": metadata.version("torchdistill")}
    except metadata.PackageNotFoundError:
        return {"torchdistill": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="store the figures as JSON")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--memory-allocator", action="store_true", help="also the allocator's effect (Linux with glibc, CPU)"
    )
    arguments = parser.parse_args()
    sections = list(arguments.only or DEFAULT)
    if arguments.memory_allocator and "allocator" not in sections:
        sections.append("allocator")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    console = Console(width=80)
    results = []
    for result in measure(sections, arguments.quick, arguments.device):
        results.append(result)
        show(result, console)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out, record(results, arguments))
    if arguments.out is not None:
        console.print(f"stored in {arguments.out}")


if __name__ == "__main__":
    main()
