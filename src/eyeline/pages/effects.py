"""What each loss does in the first step, as a table for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eyeline.errors import InputError
from eyeline.files import read_json
from eyeline.pages.tables import MISSING, loss, number, percent, plural

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("loss", "value", "weight", "gradient", "share %")
NOTE = (
    "The value of each loss, its weight, the norm of its weighted gradient in the student's parameters, and "
    "the share of that in the sum of these norms"
)


def read_effects(run: Path) -> dict[str, Any]:
    """The content of a run's ``doctor.json``; nothing where there is none that can be read."""
    try:
        content = read_json(run / "doctor.json", "what the losses of a run do")
    except InputError:
        return {}
    if not isinstance(content, dict):
        return {}
    terms, said = (found if isinstance(found := content.get(k), list) else [] for k in ("terms", "warnings"))
    return {
        "images": count if isinstance(count := content.get("images"), int) else None,
        "terms": [term for term in terms if isinstance(term, dict)],
        "warnings": [str(line) for line in said],
    }


def effect_rows(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row a loss, as text, under ``HEADINGS``: means over the runs of one method."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for term in run.get("terms", []):
            found.setdefault(str(term.get("name")), []).append(term)

    def mean(terms: Sequence[Mapping[str, Any]], key: str) -> float | None:
        values = [x for term in terms if (x := number(term.get(key))) is not None]
        return fmean(values) if values else None

    rows: list[tuple[str, ...]] = []
    for name, terms in found.items():
        value, weight, gradient, share = (
            mean(terms, key) for key in ("value", "weight", "gradient", "share")
        )
        shown = MISSING if weight is None else f"{weight:.4g}"
        rows.append((name, loss(value), shown, loss(gradient), percent(share)))
    return rows


def effects_table(result: Mapping[str, Any]) -> Table:
    """The table of one run for the terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in effect_rows([result]):
        table.add_row(*row)
    return table


def effects_html(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table for the page, of each method's runs; nothing for methods of one loss."""
    lines, said = [], []
    for method, runs in methods.items():
        rows = effect_rows(runs)
        for place, row in enumerate(rows if len(rows) > 1 else []):
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
            if place == 0 and method:
                cells = f"<th scope=row rowspan={len(rows)}>{escape(method)}</th>{cells}"
            lines.append(f"<tr>{cells}</tr>")
        warned: list[str] = next((run["warnings"] for run in runs if run), [])
        said += [f"{method}: {line}" if method else line for line in warned]
    if not lines:
        return ""
    headings = HEADINGS if "" in methods else ("method", *HEADINGS)
    head = "".join(f"<th scope=col>{heading}</th>" for heading in headings)
    images = max((run.get("images") or 0 for runs in methods.values() for run in runs), default=0)
    seen = f", on {plural(images, 'training image')}" if images else ""
    seeds = "" if "" in methods else "; means over seeds"
    return (
        f"<div class=scroll><table class=facts><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        + "".join(f"<p class=note>{escape(line)}</p>" for line in said)
        + f"<p class=note>{escape(f'{NOTE}: in the first step{seen}{seeds}.')}</p>"
    )
