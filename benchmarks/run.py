"""Measure eyeline against floors and peers: ``python benchmarks/run.py [--quick] [--out FILE.json]``.

Every comparison is interleaved in one run and reported as a ratio; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eyeline.files import write_json
from eyeline.runs.provenance import environment
from measure import Result, summary
from step import PAIRS, measure_attention, measure_step

SECTIONS = (
    "step",
    "convolutions",
    "remembered",
    "methods",
    "attention",
    "augmentation",
    "files",
    "encoding",
    "engine",
    "start",
    "study",
    "parallel",
    "scaling",
    "stacked",
    "allocator",
)
DEFAULT = SECTIONS[:-1]
Size = TypeVar("Size", int, tuple[int, ...], tuple[str, ...])


def measure(section: str, quick: bool, device: str) -> Iterator[Result]:
    """The results of a section, one after the other."""

    def size(full: Size, small: Size) -> Size:
        return small if quick else full

    batch, side = size(128, 4), size(32, 16)
    small_pair = ("wrn_10_1", "wrn_10_1")
    pairs = (small_pair,) if quick else PAIRS
    match section:
        case "step":
            for pair in pairs:
                yield measure_step(pair, batch, side, rounds=size(9, 2), device=device, compiled=not quick)
        case "convolutions":
            from convolutions import measure_convolutions

            for name in size(("wrn_40_2", "wrn_16_2"), ("wrn_10_1",)):
                yield measure_convolutions(name, batch, side, rounds=size(15, 2), device=device)
        case "remembered":
            from remembered import PAIRS as SIZED_PAIRS
            from remembered import measure_remembered

            for *names, batch, side in ((*small_pair, 4, 16),) if quick else SIZED_PAIRS:
                pair = (names[0], names[1])
                yield measure_remembered(pair, batch, side, size(9, 2), device, compiled=not quick)
        case "methods":
            from methods import measure_methods

            pair = small_pair if quick else ("wrn_16_2", "wrn_16_1")
            yield measure_methods(pair, batch, side, rounds=size(15, 2), device=device)
        case "attention":
            yield measure_attention(batch, side, rounds=size(100, 2), device=device)
        case "augmentation":
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
        case "files":
            from pipeline import measure_files

            # an epoch is a whole number of batches, all of one size
            yield measure_files(size(400, 20), size(90, 9), size(4, 1), rounds=size(7, 2), device=device)
        case "encoding":
            from encoding import measure_encoding

            yield from measure_encoding(images=size(1000, 200), epochs=size(5, 1))
        case "engine":
            from process import measure_engine

            yield measure_engine(steps=size(10_000, 20), rounds=size(5, 2), device=device)
        case "start":
            from process import measure_start

            yield measure_start(rounds=size(7, 1), device=device)
        case "study":
            from study import measure_studies

            yield from measure_studies(quick, device)
        case "parallel":
            from study import measure_parallel

            yield measure_parallel(size(16, 1), size(1000, 40), size(4, 2), size(5, 1), device)
        case "scaling":
            from scaling import measure_scaling

            sizes = {
                "images": size((32, 64, 128, 256, 512), (2, 4)),
                "stages": size((1, 2, 3), (1, 2)),
                "resolution": size((16, 32, 64), (8, 16)),
                "seeds": size((1, 2, 3, 4, 5), (1, 2)),
            }
            pair = small_pair if quick else ("wrn_16_2", "wrn_16_1")
            yield from measure_scaling(pair, sizes, batch, side, rounds=size(5, 2), device=device)
        case "stacked":
            from stacked import measure_stacked

            for few in size((8, 32, 128), (4,)):
                name = "wrn_10_1" if quick else "wrn_16_1"
                yield measure_stacked(name, few, side, rounds=size(7, 2), device=device)
        case "allocator":
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
    for name, value in result.facts.items():
        console.print(Text(f"{name}: {value:,.4g}"))
    for note in result.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _unit(result: Result) -> tuple[str, Callable[[float], str]]:
    """The unit that the figures are shown in, and how."""
    if result.unit == "relative":
        return result.unit, lambda value: f"{value:.1e}"
    if result.unit != "s":
        return result.unit, lambda value: f"{value:,.0f}"
    largest = max(max(values) for values in result.samples.values())
    scale, name = (1, "s") if largest >= 2 else (1e3, "ms") if largest >= 2e-3 else (1e6, "µs")
    return name, lambda value: f"{value * scale:,.2f}"


def record(results: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is stored: where, when and of which commit, then the results."""
    return {
        "kind": "benchmark",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "quick": arguments.quick,
        "device": arguments.device,
        "environment": {k: v for k, v in environment().items() if k != "command"} | {"peers": _peers()},
        "results": results,
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
    try:
        for section in (name for name in SECTIONS if name in sections):
            for result in measure(section, arguments.quick, arguments.device):
                results.append({"section": section, **result.as_json()})
                show(result, console)
                if arguments.out is not None:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    write_json(arguments.out, record(results, arguments))
    except KeyboardInterrupt:
        sys.exit("stopped")  # its processes end with it
    if arguments.out is not None:
        console.print(f"stored in {arguments.out}")


if __name__ == "__main__":
    main()
