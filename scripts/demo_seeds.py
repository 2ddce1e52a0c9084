"""Run the demo's comparison on several sets of seeds and in both precisions.

What is not significant in each of them is not claimed. Run it again and it goes on where it was.

python scripts/demo_seeds.py runs/demo_seeds --out benchmarks/results/demo_seeds.json
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import eyeline
from eyeline.device import has_native_bf16
from eyeline.files import write_json
from eyeline.kinds import parse_yaml
from eyeline.runs.provenance import environment

SETS = (range(6), range(6, 12), range(12, 18))


def main() -> None:
    """Make the studies, print their differences, and store them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the studies go")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    arguments = parser.parse_args()
    assets = resources.files("eyeline.data") / "assets"
    recipe = parse_yaml((assets / "demo.yaml").read_text("utf-8"))
    studies = []
    for precision in arguments.precisions:
        memory = str(arguments.folder / f"memory-{precision}")
        for seeds in SETS:
            out = arguments.folder / f"{precision}-{seeds[0]}"
            how = {"precision": precision, "memory": memory, "parallel": 1, "accelerator": "cpu"}
            run = eyeline.study(**recipe | how | {"seeds": list(seeds)}, out=str(out), resume=out.exists())
            studies.append(told(run.result))
            write_json(arguments.out, record(recipe, studies))
    show(studies)


def told(study: dict[str, Any]) -> dict[str, Any]:
    """What counts of a study here."""
    methods = {
        entry["method"]: entry["summary"]["test_accuracy"] | {"difference": entry.get("difference")}
        for entry in study["methods"]
    }
    return {"precision": study["recipe"]["precision"], "seeds": study["recipe"]["seeds"], "methods": methods}


def record(recipe: dict[str, Any], studies: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored: what was run, where, and what came out."""
    where = {k: v for k, v in environment().items() if k != "command"}
    where["bf16 in hardware"] = has_native_bf16("cpu")
    return {"kind": "demo seeds", "recipe": recipe, "environment": where, "studies": studies}


def show(studies: list[dict[str, Any]]) -> None:
    """The differences to the student alone, a row a study."""
    methods = list(studies[0]["methods"])
    table = Table(box=box.SIMPLE)
    for name in ("precision", "seeds", *methods):
        table.add_column(name, no_wrap=True)
    for study in studies:
        cells = []
        for figures in study["methods"].values():
            if (difference := figures["difference"]) is None:
                cells.append(f"{100 * figures['mean']:.1f}")
                continue
            mean, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
            mark = "" if difference["p_holm"] < 0.05 else " (not significant)"
            cells.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{mark}")
        first, *_, last = study["seeds"]
        table.add_row(study["precision"], f"{first}-{last}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
