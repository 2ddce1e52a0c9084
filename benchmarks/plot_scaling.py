"""Draw how the cost grows, on logarithmic axes: ``python benchmarks/plot_scaling.py FILE.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from eyeline.pages.charts import COLORS
from eyeline.pages.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "scaling.png"
INK, MUTED, GRID = "#1a1f27", "#5b6472", "#e2e4e8"
AXES = {
    "images": "images a step",
    "stages": "stages",
    "resolution": "side, pixels",
    "seeds": "seeds of a study",
}


def draw(record: Mapping[str, Any]) -> Figure:
    """One panel for each result of section ``scaling``: medians and quartiles, the slopes in the legend.

    Raises:
        SystemExit: the record has no such section.
    """
    results = [result for result in record["results"] if result["section"] == "scaling"]
    if not results:
        raise SystemExit("the file has no section 'scaling': python benchmarks/run.py --only scaling")
    figure = Figure(figsize=(2.7 * len(results), 3.0), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (what, label), result in zip(panels, AXES.items(), results, strict=True):
        assert f"by {what}" in result["title"]
        _panel(axes, result)
        axes.set_xlabel(label, color=INK)
    for axes in panels[1:-1]:
        axes.sharey(panels[0])
        axes.autoscale(axis="y")
    panels[0].set_ylabel("ms a step", color=INK)
    panels[-1].set_ylabel("s a study", color=INK)
    return figure


def _panel(axes: Axes, result: Mapping[str, Any]) -> None:
    axes.set(xscale="log", yscale="log")
    scale = 1 if "study" in result["title"] else 1e3
    for color, (fact, slope) in zip(COLORS, result["facts"].items(), strict=False):
        kind = fact.removeprefix("slope, ")
        points = {
            int(name.rpartition(", ")[2]): figures
            for name, figures in result["values"].items()
            if name.startswith(f"{kind}, ")
        }
        middle, low, high = (
            [scale * figures[key] for figures in points.values()]
            for key in ("median", "lower_quartile", "upper_quartile")
        )
        axes.plot(list(points), middle, "o-", color=color, ms=4, lw=1.5, label=f"{kind}, slope {slope:.2f}")
        axes.fill_between(list(points), low, high, color=color, alpha=0.2, lw=0)
        axes.set_xticks(list(points), [str(size) for size in points])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "record", type=Path, help="stored by benchmarks/run.py --only scaling --out FILE.json"
    )
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (default: %(default)s)")
    arguments = parser.parse_args()
    print(save_figure(draw(json.loads(arguments.record.read_text(encoding="utf-8"))), arguments.out))


if __name__ == "__main__":
    main()
