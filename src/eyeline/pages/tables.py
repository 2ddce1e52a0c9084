"""A study as a table: one source of formatting for the terminal, for markdown and for the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eyeline.errors import InputError
from eyeline.files import read_json
from eyeline.names import losses_in_source

if TYPE_CHECKING:
    from rich.table import Table


MISSING = "–"

HEADINGS = (
    "method",
    "params",
    "train loss",
    "train accuracy %",
    "AT loss",
    "agreement %",
    "test accuracy %",
    "difference, points",
)

_BROKEN = {  # where the terminal breaks them, but at their first space
    "train accuracy %": "train\nacc. %",
    "agreement %": "agree-\nment %",
    "difference, points": "difference,\npoints",
}

Verdict = Literal["better", "worse", "not significant", "no interval", ""]

UNDECIDED = ("not significant", "no interval")

LEVEL = 0.05

ENOUGH = 6
"""Seeds with which a sign-flip test can be significant: of 2^5 patterns 2 are more than 5 %, of 2^6 less."""


class Row(NamedTuple):
    """One line of the table, every cell as text; the order of the fields is that of ``HEADINGS``."""

    method: str
    parameters: str
    train_loss: str
    train_accuracy: str
    attention_loss: str
    agreement: str
    test_accuracy: str
    difference: str
    verdict: Verdict


def read_study(folder: str | Path) -> dict[str, Any]:
    """Read ``study.json`` of a study folder.

    Raises InputError when it is missing, is not JSON or is not a study.
    """
    path = Path(folder) / "study.json"
    what = "the folder of a study, with study.json in it; make one with `eyeline study --help`"
    study, expected = read_json(path, what), f"expected {what}"
    if not isinstance(study, dict) or study.get("kind") != "study":
        raise InputError(f'{path} does not say "kind": "study"; {expected}')
    for key in ("recipe", "environment", "data", "teacher", "student"):
        if not isinstance(study.get(key), dict):
            raise InputError(f"{path} is damaged: {key!r} is not a mapping; {expected}")
    methods = study.get("methods")
    if not isinstance(methods, list) or not all(_is_method(m) for m in methods):
        raise InputError(f"{path} is damaged: 'methods' is not a list of methods with their runs; {expected}")
    return study


def _is_method(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        return False
    runs = entry.get("runs")
    return (
        isinstance(runs, list)
        and all(isinstance(run, dict) for run in runs)
        and isinstance(entry.get("summary", {}), dict)
        and isinstance(entry.get("difference") or {}, dict)
    )


def display_name(method: str) -> str:
    """The name a reader sees: "ce" is the student alone, "at+kd" is "AT + KD"; names of the user's stay."""
    if method == "ce":
        return "student alone"
    known, parts = losses_in_source(), [part.strip() for part in method.split("+")]
    return " + ".join(part.upper() if part in known else part for part in parts)


def in_order(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The methods of a study, the student alone first, the others as they were asked for."""
    return sorted(study["methods"], key=lambda entry: entry["method"] != study.get("baseline", "ce"))


def number(value: object) -> float | None:
    """A finite number, or None for whatever is missing, NaN or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object) -> str:
    """A fraction in [0, 1] as a percentage without its sign: 0.8912 -> "89.1"."""
    x = number(value)
    return MISSING if x is None else f"{100 * x:.1f}"


def loss(value: object) -> str:
    """A loss with three significant digits, below 0.01 as a power of ten: 0.0352 and "2.1e-4"."""
    x = number(value)
    if x is None:
        return MISSING
    return f"{x:.1e}".replace("e-0", "e-") if 0 < abs(x) < 1e-2 else f"{x:#.3g}".rstrip(".")


def count(value: object) -> str:
    """A number of parameters: 175,066 -> "175 k"."""
    x = number(value)
    if x is None:
        return MISSING
    for unit, size in (("", 1.0), (" k", 1e3), (" M", 1e6)):
        if x < 999.5 * size:
            return f"{x / size:.3g}{unit}"
    return f"{x / 1e9:.3g} B"


def points(*fractions: float) -> list[str]:
    """Differences of accuracies as signed percentage points; two decimals where one would read as 0.0."""
    digits = 2 if any(0 < abs(100 * x) < 0.05 for x in fractions) else 1
    return [f"{100 * x:+.{digits}f}".replace("-", "−") for x in fractions]


def interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a method's difference to the student alone, where it was estimated and tested."""
    difference = entry.get("difference") or {}
    low, high, *p = (number(difference.get(key)) for key in ("low", "high", "p_holm", "p_flips"))
    return None if low is None or high is None or None in p else (low, high)


def verdict(entry: Mapping[str, Any]) -> Verdict:
    """What the tests of a method's difference to the student alone allow to say."""
    difference = entry.get("difference") or {}
    mean = number(difference.get("mean"))
    if mean is None:
        return ""
    if interval(entry) is None:
        return "no interval"
    if max(difference["p_holm"], difference["p_flips"]) > LEVEL:
        return "not significant"
    return "better" if mean > 0 else "worse"


def mean_of(entry: Mapping[str, Any], key: str) -> float | None:
    """The mean of a figure over the runs of a method: from its summary, else from the runs themselves."""
    summary = entry.get("summary", {}).get(key)
    if isinstance(summary, dict) and (mean := number(summary.get("mean"))) is not None:
        return mean
    values = [x for run in entry["runs"] if (x := number(run.get(key))) is not None]
    return fmean(values) if values else None


def study_rows(study: Mapping[str, Any]) -> list[Row]:
    """The lines of the table as plain text: the teacher, the student alone, then every method."""
    teacher = study["teacher"]
    rows = [
        Row(
            "teacher",
            count(teacher.get("parameters")),
            loss(teacher.get("train_loss")),
            percent(teacher.get("train_accuracy")),
            MISSING,
            MISSING,
            percent(teacher.get("test_accuracy")),
            MISSING,
            "",
        )
    ]
    for entry in in_order(study):
        accuracy = percent(mean_of(entry, "test_accuracy"))
        spread = percent((entry.get("summary", {}).get("test_accuracy") or {}).get("std"))
        if MISSING not in (accuracy, spread):
            accuracy += f" ± {spread}"
        rows.append(
            Row(
                display_name(entry["method"]),
                count(study["student"].get("parameters")),
                loss(mean_of(entry, "train_loss")),
                percent(mean_of(entry, "train_accuracy")),
                loss(mean_of(entry, "attention_loss")),
                percent(mean_of(entry, "teacher_agreement")),
                accuracy,
                "baseline" if entry["method"] == study.get("baseline", "ce") else _difference(entry),
                verdict(entry),
            )
        )
    return rows


def _difference(entry: Mapping[str, Any]) -> str:
    mean = number((entry.get("difference") or {}).get("mean"))
    if mean is None:
        return MISSING
    shown = points(mean, *(interval(entry) or ()))
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def seeds(study: Mapping[str, Any]) -> int:
    """The number of seeds of the method with the most runs."""
    return max((len(entry["runs"]) for entry in study["methods"]), default=0)


def plural(amount: int, noun: str) -> str:
    """ "1 seed", "5 seeds", "1,000 images"."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def protocol(study: Mapping[str, Any]) -> str:
    """One line that says how the figures of the table came about."""
    data = study["data"]
    parts = [str(data.get("name", MISSING))]
    for key, text in (("train", "labelled training"), ("validation", "validation"), ("test", "test")):
        if isinstance(data.get(key), int):
            parts.append(plural(data[key], f"{text} image"))
    if skipped := data.get("skipped"):
        parts.append(f"{plural(len(skipped), 'unreadable image')} left out")
    parts.append(plural(seeds(study), "seed"))
    if isinstance(epochs := study["recipe"].get("epochs"), int):
        parts.append(plural(epochs, "epoch"))
        if (views := study["recipe"].get("views") or epochs) < epochs:
            parts.append(f"{plural(views, 'view')} of each training image")
    return f"{', '.join(parts)}. {_statistics(study)}"


def _statistics(study: Mapping[str, Any]) -> str:
    """What is averaged, resampled and tested."""
    said = "Means over seeds; ±: standard deviation over seeds. "
    if any(mean_of(entry, "teacher_agreement") is not None for entry in study["methods"]):
        said += "Agreement: test images that get the teacher's answer. "
    said += "Difference: test accuracy minus that of the student alone, paired by seed and image"
    methods = sum(interval(entry) is not None for entry in study["methods"])
    if not methods:
        return (
            f"{said}; it has no interval without test images, with one seed, or where all seeds agree in it."
        )
    said += (
        ", with its 95 % t interval over seeds and test images as two crossed samples; not significant: "
        f"p above {LEVEL} in the t-test of that interval, after Holm's correction over "
        f"{plural(methods, 'method')}, or in the sign-flip test over the {plural(seeds(study), 'seed')}"
    )
    if seeds(study) < ENOUGH:
        said += f", which cannot be significant with fewer than {ENOUGH}"
    return f"{said}."


def study_table(study: Mapping[str, Any]) -> Table:
    """The table of a study for the terminal, from 80 columns on; print ``protocol(study)`` below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for heading in HEADINGS:
        first, last = heading == HEADINGS[0], heading == HEADINGS[-1]
        # only the outer columns may wrap, so that no figure is ever cut
        table.add_column(
            Text(_BROKEN.get(heading, heading.replace(" ", "\n", 1))),
            justify="left" if first or last else "right",
            no_wrap=not (first or last),
            overflow="fold",
            vertical="top",
        )
    styles = {"better": "green", "worse": "red"}
    for row in study_rows(study):
        note = f"\n{row.verdict}" if row.verdict in UNDECIDED else ""
        last_cell = Text(row.difference + note, style=styles.get(row.verdict, ""))
        table.add_row(*map(Text, row[:-2]), last_cell)
    return table


def study_markdown(study: Mapping[str, Any]) -> str:
    """The table of a study as markdown, with the protocol below it."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|:--" + "|--:" * (len(HEADINGS) - 2) + "|:--|"]
    for row in study_rows(study):
        note = f", {row.verdict}" if row.verdict in UNDECIDED else ""
        cells = (*row[:-2], row.difference + note)
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    return "\n".join(lines) + f"\n\n{_markdown(protocol(study))}\n"


def _markdown(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def show(folder: Path, result: Mapping[str, Any]) -> None:
    """Print what came out of a run, in a line, or of a study or a first step, in a table."""
    if result.get("kind") == "doctor":
        from rich.console import Console

        from eyeline.pages.effects import NOTE, effects_table

        shown = Console()
        shown.print(effects_table(result))
        images = plural(result["images"], "training image")
        for line in (f"{NOTE}: on {images}, and nothing is trained.", *result["warnings"]):
            shown.print(line, highlight=False, markup=False)
        return
    if result.get("kind") == "study":
        from rich.console import Console

        from eyeline.runs.folder import PAGE

        shown = Console()
        shown.print(study_table(result))
        shown.print(protocol(result), highlight=False, markup=False)
        print(f"\nThe page with the curves and the attention maps: {(folder / PAGE).resolve()}")
        return
    figures = [
        f"{split} accuracy {100 * result[f'{split}_accuracy']:.2f} %"
        for split in ("test", "validation")
        if result.get(f"{split}_accuracy") is not None
    ]
    print(f"{folder}: {', '.join(figures)}")
