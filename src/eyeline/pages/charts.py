"""The charts of the page, as plotly figures in HTML that need no network."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from eyeline.pages.tables import UNDECIDED, display_name, in_order, interval, number, points, verdict

# Okabe and Ito's colours, which stay apart for colour-blind readers; the student alone is grey
BASELINE_COLOR = "#808892"

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_GRID = "rgba(128, 136, 146, 0.22)"

_INK = "#6b7280"  # the page's style sheet replaces it by the ink of the light or the dark scheme

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Curve:
    """One line over the epochs, and its band from the lowest to the highest of several seeds."""

    name: str
    color: str
    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def method_colors(study: Mapping[str, Any]) -> dict[str, str]:
    """The colour of every method, the same in all charts."""
    others = [e["method"] for e in in_order(study) if e["method"] != study.get("baseline", "ce")]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(others)}
    return {str(study.get("baseline", "ce")): BASELINE_COLOR} | colors


def curve(name: str, color: str, runs: Sequence[Sequence[Mapping[str, float]]], column: str) -> Curve | None:
    """Average a column of ``metrics.csv`` over runs, epoch by epoch; None where no run has it."""
    by_epoch: dict[int, list[float]] = {}
    for rows in runs:
        for row in rows:
            value = row.get(column, math.nan)
            if math.isfinite(value) and math.isfinite(row.get("epoch", math.nan)):
                by_epoch.setdefault(int(row["epoch"]), []).append(value)
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return Curve(
        name,
        color,
        epochs,
        [math.fsum(v) / len(v) for v in values],
        [min(v) for v in values],
        [max(v) for v in values],
        max(map(len, values)),
    )


def curves_chart(name: str, curves: Sequence[Curve], percentage: bool = False) -> str:
    """Lines over epochs as HTML; logarithmic for a loss that falls by more than a factor of 50."""
    figure = go.Figure()
    scale = 100 if percentage else 1
    for each in curves:
        if each.seeds > 1:
            figure.add_scatter(
                x=each.epochs + each.epochs[::-1],
                y=[scale * v for v in each.high + each.low[::-1]],
                fill="toself",
                fillcolor=_faint(each.color),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
            )
    for each in curves:
        label = html.escape(each.name)
        figure.add_scatter(
            x=each.epochs,
            y=[scale * v for v in each.mean],
            name=label,
            mode="lines" if len(each.epochs) > 1 else "markers",
            line={"color": each.color, "width": 2},
            marker={"color": each.color},
            hovertemplate="%{y:.1f} %" if percentage else "%{y:.3~g}",
        )
    values = [v for each in curves for v in each.low + each.high]
    logarithmic = not percentage and min(values) > 0 and max(values) > 50 * min(values)
    figure.update_layout(hovermode="x unified", hoverlabel={"namelength": -1})
    few = max(each.epochs[-1] for each in curves) <= 10
    figure.update_xaxes(title="epoch", dtick=1 if few else None)
    figure.update_yaxes(ticksuffix=" %" if percentage else "", nticks=7)
    if logarithmic:
        figure.update_yaxes(type="log", dtick=1, exponentformat="none")
    elif not percentage:
        figure.update_yaxes(rangemode="tozero")
    return _html(figure, name, height=270)


def interval_chart(name: str, study: Mapping[str, Any]) -> str | None:
    """Each method's difference to the student alone: interval, mean, single seeds; None where unknown."""
    baseline = study.get("baseline", "ce")
    alone = {
        run.get("seed"): number(run.get("test_accuracy"))
        for entry in study["methods"]
        if entry["method"] == baseline
        for run in entry["runs"]
    }
    colors = method_colors(study)
    shown = [e for e in in_order(study) if e["method"] != baseline and verdict(e)]
    if not shown:
        return None
    figure = go.Figure()
    for place, entry in enumerate(reversed(shown)):
        color, difference = colors[entry["method"]], entry["difference"]
        label = html.escape(display_name(entry["method"]))
        seeds, single = [], []
        for run in entry["runs"]:
            ours, theirs = number(run.get("test_accuracy")), alone.get(run.get("seed"))
            if ours is not None and theirs is not None:
                seeds.append(run.get("seed"))
                single.append(ours - theirs)
        figure.add_scatter(
            x=[100 * x for x in single],
            y=[place - 0.26] * len(single),
            mode="markers",
            marker={"symbol": "circle-open", "color": color, "size": 8, "line": {"width": 1.5}},
            text=[
                f"{label}, seed {html.escape(str(s))}: {points(x)[0]}"
                for s, x in zip(seeds, single, strict=True)
            ],
            hovertemplate="%{text} points<extra></extra>",
        )
        mean = number(difference.get("mean")) or 0.0
        text = f"{label}: {points(mean)[0]} points"
        error = None
        if (ends := interval(entry)) is not None:
            low, high = ends
            text += f"<br>95 % interval {points(low)[0]} to {points(high)[0]}"
            error = {
                "type": "data",
                "symmetric": False,
                "array": [100 * (high - mean)],
                "arrayminus": [100 * (mean - low)],
                "color": color,
                "thickness": 3,
                "width": 7,
            }
        figure.add_scatter(
            x=[100 * mean],
            y=[place],
            mode="markers",
            marker={"symbol": "diamond", "color": color, "size": 13},
            error_x=error,
            text=[text + (f"<br>{verdict(entry)}" if verdict(entry) in UNDECIDED else "")],
            hovertemplate="%{text}<extra></extra>",
        )
    labels = [
        "<br>".join(textwrap.wrap(html.escape(display_name(e["method"])), 18) or [""])
        for e in reversed(shown)
    ]
    figure.add_vline(x=0, line={"color": BASELINE_COLOR, "width": 2})
    figure.add_annotation(
        x=0, y=1, yref="paper", yanchor="bottom", text="student alone", showarrow=False, font={"size": 12}
    )
    figure.update_layout(hovermode="closest", margin={"t": 26})
    figure.update_xaxes(title="difference, percentage points", nticks=8)
    figure.update_yaxes(
        tickvals=list(range(len(shown))),
        ticktext=labels,
        range=[-0.6, len(shown) - 0.5],
        showgrid=False,
        tickfont={"size": 14},
    )
    return _html(figure, name, height=100 + 58 * len(shown))


# run at the end of the page: a chart drawn before would take the width of a page half read
SCRIPT = """
for (const data of document.querySelectorAll(".chart script")) {
  const figure = JSON.parse(data.textContent);
  const settings = {responsive: true, displayModeBar: false};
  Plotly.newPlot(data.previousElementSibling, figure.data, figure.layout, settings);
}
"""


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.16)"


def _html(figure: go.Figure, name: str, height: int) -> str:
    figure.update_layout(
        template="none",
        height=height,
        showlegend=False,
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 12.5, "color": _INK},
    )
    figure.update_layout(margin={"l": 8, "r": 12, "b": 8} | ({} if figure.layout.margin.t else {"t": 8}))
    figure.update_xaxes(automargin=True, gridcolor=_GRID, zeroline=False, fixedrange=True, title_standoff=8)
    figure.update_xaxes(title_font_size=12.5)
    figure.update_yaxes(automargin=True, gridcolor=_GRID, zeroline=False, fixedrange=True)
    content = figure.to_json()  # plotly writes "<" as \u003c, so that no text can end the script element
    plot = f'<div id="{name}" style="height:{height}px"></div>'
    return f'{plot}<script type="application/json">{content}</script>'
