"""The page of a study or of a single run: one HTML file that carries everything in itself."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eyeline.errors import InputError
from eyeline.files import read_json, replacing
from eyeline.pages import charts, tables
from eyeline.pages.charts import Curve
from eyeline.pages.effects import effects_html, read_effects
from eyeline.pages.style import STYLE
from eyeline.pages.tables import MISSING, Row
from eyeline.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_CURVES = (
    ("train-loss", "ce", "Training loss", "Cross entropy on the training images. Lower is better."),
    (
        "validation-accuracy",
        "validation_accuracy",
        "Validation accuracy",
        "On images held out from training.",
    ),
    (
        "attention-loss",
        "at",
        "Attention transfer loss",
        "How far the student's maps are from the teacher's, before weighting; for methods that train on it.",
    ),
)

_MEANING = {
    "student": "the network that is trained",
    "model": "the network that is trained",
    "teacher": "the network it learns from",
    "data": "the images",
    "method": "the losses, their weights and parameters",
    "methods": "what is compared: for each method its losses, their weights and parameters",
    "seeds": "one run of every method for each of these seeds",
    "layers": "where attention maps are taken; auto: the last layer of every resolution, paired",
    "teacher_weights": "a file of weights for the teacher",
    "student_weights": "a file of weights the student starts from",
    "pretrained": "whether training starts from published weights",
    "weights": "a file of weights training starts from",
} | {f.name: str(f.metadata.get("doc", "")).replace("%%", "%") for f in dataclasses.fields(Settings)}

_NOTES = (
    "The figures are those of the last epoch, and test images were used only after training: no epoch was "
    "picked by its test accuracy. Training loss and accuracy of a student are averages over the last epoch, "
    "on augmented images; those of a teacher are measured afterwards, without augmentation. AT loss is "
    "measured on the validation images, before weighting."
)


def write_page(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a study or a run; by default to ``report.html`` in its folder.

    Raises InputError when the folder is neither, or not finished, or damaged, or the page cannot be written.
    """
    folder = Path(folder).expanduser()
    page = study_page(folder) if (folder / "study.json").exists() else run_page(folder)
    place = folder / "report.html" if out is None else Path(out).expanduser()
    if place.is_dir():
        raise InputError(f"cannot write the page {place}: it is a folder")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as file:
            file.write(page.encode())
    except OSError as error:
        raise InputError(f"cannot write the page {place}: {error.strerror or error}") from error
    return place


def study_page(folder: str | Path, attention: Figure | None = None) -> str:
    """The page of a study: findings, table, intervals, curves, attention maps, protocol.

    folder: with ``study.json``, and ``metrics.csv`` in the folder of each run. attention: a figure to show
    in place of the folder's ``attention.png``. Raises InputError when ``study.json`` is missing or damaged.
    """
    folder = Path(folder)
    study = tables.read_study(folder)
    headline, findings = study_findings(study)
    data = study["data"]
    taught = f"{_name(study['student'])} taught by {_name(study['teacher'])} on {_name(data, 'name')}"
    listed = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
    body = [
        f"<header><p class=kicker>Study · {taught}</p><h1>{escape(headline)}</h1>",
        f"<ul class=findings>{listed}</ul>" if listed else "",
        "</header>",
        _section(
            "Results",
            _study_table(tables.study_rows(study)),
            f"<p class=note>{escape(tables.protocol(study))}</p>",
        ),
    ]
    if chart := charts.interval_chart("intervals", study):
        about = "Difference in test accuracy of each method to the student alone, with its 95 % interval"
        body.append(
            _section(
                "Is the difference real?",
                "<p>Every method is compared with the student trained alone, seed by seed and image by "
                "image. Right of the line is better. An interval that crosses it does not show a difference; "
                "the marks in the table count as well how many methods were tried.</p>",
                _chart(chart, about),
                "<p class=note>Diamond and bar: mean over seeds, and the 95 % interval for new seeds and new "
                "images. Circles: single seeds, on these images.</p>",
            )
        )
    body.append(_training_section(folder, study))
    effects = {
        tables.display_name(entry["method"]): [
            read_effects(folder / str(run.get("run", ""))) for run in entry["runs"]
        ]
        for entry in tables.in_order(study)
    }
    body.append(_effects_section(effects))
    body.append(_attention_section(folder, attention))
    body.append(_protocol_section(study["recipe"], study["environment"], "study", data))
    return _page(f"{headline} – eyeline", body)


def run_page(folder: str | Path) -> str:
    """The page of one run: its figures, curves and recipe.

    folder: with ``result.json``, ``metrics.csv`` and ``recipe.yaml``. Raises InputError when the run is
    missing, not finished or damaged.
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
        if (folder / "recipe.yaml").exists():
            raise InputError(
                f"{folder} holds a run or study that is not finished; continue it with --resume, "
                "or, where it diverged, start anew with --overwrite and a smaller learning_rate or weight"
            )
        raise InputError(
            f"{folder} has neither study.json nor result.json; expected the folder of a study or a run; "
            "make one with `eyeline study`, `eyeline distill` or `eyeline train`"
        )
    result = _mapping(folder / "result.json")
    recipe = _mapping(folder / "recipe.yaml", required=False)
    rows = read_metrics(folder)
    network = result.get("student") or result.get("model")
    network = network if isinstance(network, dict) else {}
    data = result["data"] if isinstance(result.get("data"), dict) else {}
    method = str(result.get("method", "ce"))
    about = _name(network)
    if method != "ce" and isinstance(result.get("teacher"), dict):
        about += f" taught by {_name(result['teacher'])} with {escape(tables.display_name(method))}"
    about += f" on {_name(data, 'name')}"
    tested = "test" if tables.number(result.get("test_accuracy")) is not None else "validation"
    accuracy = tables.percent(result.get(f"{tested}_accuracy"))
    headline = f"{accuracy} % of the {tested} images are classified correctly"
    if accuracy == MISSING:
        headline = "No accuracy was measured"
    figures = [
        ("test accuracy", tables.percent(result.get("test_accuracy")), "%"),
        ("validation accuracy", tables.percent(result.get("validation_accuracy")), "%"),
        ("training accuracy", tables.percent(result.get("train_accuracy")), "%"),
        ("training loss", tables.loss(result.get("train_loss")), ""),
        ("AT loss on validation", tables.loss(result.get("attention_loss")), ""),
        ("agreement with the teacher", tables.percent(result.get("teacher_agreement")), "%"),
        ("parameters", tables.count(network.get("parameters")), ""),
    ]
    tiles = "".join(
        f"<div><dt>{label}</dt><dd>{value}{f'<small> {unit}</small>' if value != MISSING else ''}</dd></div>"
        for label, value, unit in figures
    )
    body = [
        f"<header><p class=kicker>Run · seed {escape(str(result.get('seed', MISSING)))} · {about}</p>"
        f"<h1>{escape(headline)}</h1></header>",
        _section(
            "Figures",
            f"<dl class=tiles>{tiles}</dl>",
            "<p class=note>After the last epoch. One run cannot tell whether a method helps: the chance of "
            "its seed may outweigh it. <code>eyeline study</code> compares methods over several seeds.</p>",
        ),
        _run_curves(rows),
        _effects_section({"": [read_effects(folder)]}),
        _attention_section(folder, None),
        _protocol_section(
            recipe, _mapping(folder / "environment.json", required=False), str(result.get("verb")), data
        ),
    ]
    return _page(f"{headline} – eyeline", body)


def study_findings(study: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a study shows, in plain words: the headline, and one sentence for each of several methods."""
    entries = [e for e in tables.in_order(study) if e["method"] != study.get("baseline", "ce")]
    judged = [e for e in entries if tables.verdict(e)]
    if not judged:
        return "No difference to the student alone was measured", []
    sentences = [_finding(entry) for entry in judged]
    if len(judged) == 1:
        return sentences[0], []
    by_verdict: dict[str, list[str]] = {}
    for entry in judged:
        by_verdict.setdefault(tables.verdict(entry), []).append(tables.display_name(entry["method"]))
    better, worse = by_verdict.pop("better", []), by_verdict.pop("worse", [])
    parts = []
    if better:
        parts.append(f"{_listed(better)} {'beats' if len(better) == 1 else 'beat'} the student alone")
    if worse:
        whom = "it" if better else "the student alone"
        parts.append(f"{_listed(worse)} {'falls' if len(worse) == 1 else 'fall'} short of {whom}")
    if not parts:
        return "No method is shown to differ from the student alone", sentences
    if undecided := [name for names in by_verdict.values() for name in names]:
        parts.append(f"no difference shown for {_listed(undecided)}")
    return "; ".join(parts), sentences


def _finding(entry: Mapping[str, Any]) -> str:
    difference, kind, name = entry["difference"], tables.verdict(entry), tables.display_name(entry["method"])
    seeds = tables.plural(int(difference.get("seeds") or len(entry["runs"])), "seed")
    mean = difference["mean"]
    if kind == "no interval":
        by = tables.points(mean)[0]
        return f"{name}: no difference to the student alone shown: {by} points, and no interval from {seeds}"
    shown = tables.points(mean, difference["low"], difference["high"])
    interval = f"(95 % interval {shown[1]} to {shown[2]}, {seeds})".replace("+", "")
    if kind == "not significant":
        return f"{name}: no difference to the student alone shown: {shown[0]} points {interval}"
    by = shown[0].lstrip("+−")
    if kind == "better":
        return f"{name} beats the student alone by {by} points {interval}"
    return f"{name} falls short of the student alone by {by} points {interval}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``, without what is empty or no number; none if there is no file."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [{k: x for k, v in row.items() if (x := _float(v)) is not None} for row in rows]


def _float(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mapping(path: Path, required: bool = True) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping."""
    if not required and not path.exists():
        return {}
    if path.suffix == ".json":
        content = read_json(path, "a file written by eyeline")
    else:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path} is damaged ({error}); expected a file written by eyeline") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: no mapping; expected a file written by eyeline")
    return content


def _name(described: Mapping[str, Any], key: str = "model") -> str:
    return escape(str(described.get(key) or MISSING))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _chart(chart: str, about: str) -> str:
    return f'<div class=chart role=img aria-label="{escape(about)}">{chart}</div>'


def _study_table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th scope=col>{heading}</th>" for heading in tables.HEADINGS)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:-2])
        mark = (
            f" <span class='mark {row.verdict.replace(' ', '-')}'>{row.verdict}</span>" if row.verdict else ""
        )
        lines.append(
            f"<tr><th scope=row>{escape(row.method)}</th>{cells}"
            f"<td class=difference>{escape(row.difference)}{mark}</td></tr>"
        )
    return (
        "<div class=scroll tabindex=0 role=region aria-label='Results'><table class=results>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _training_section(folder: Path, study: Mapping[str, Any]) -> str:
    colors = charts.method_colors(study)
    metrics, missing = {}, []
    for entry in tables.in_order(study):
        runs = [str(run.get("run", "")) for run in entry["runs"]]
        metrics[entry["method"]] = [read_metrics(folder / run) for run in runs]
        missing += [run for run, rows in zip(runs, metrics[entry["method"]], strict=True) if not rows]
    figures = []
    for name, column, title, about in _CURVES:
        curves = [
            line
            for method, runs_ in metrics.items()
            if (line := charts.curve(tables.display_name(method), colors[method], runs_, column))
        ]
        figures.append(_figure(name, title, about, curves, column.endswith("accuracy")))
    key = "".join(
        f"<li><i style='background:{colors[m]}'></i>{escape(tables.display_name(m))}</li>" for m in metrics
    )
    note = "Line: mean over seeds. Band: from the lowest to the highest seed."
    if missing:
        note += f" Without curves, for want of a readable metrics.csv: {', '.join(missing)}."
    if not any(figures):
        return _section("Training", f"<p class=note>{escape(note)}</p>") if missing else ""
    return _section(
        "Training",
        f"<ul class=key>{key}</ul><div class=charts>{''.join(figures)}</div><p class=note>{escape(note)}</p>",
    )


def _run_curves(rows: Sequence[Mapping[str, float]]) -> str:
    whole = dict.fromkeys(column for row in rows for column in row)
    known = {"epoch", "step", "images_per_second", "learning_rate", "train_accuracy", "validation_accuracy"}
    terms = [column for column in whole if column not in known | {"ce", "loss", "validation_loss"}]

    def lines(*columns: tuple[str, str]) -> list[Curve]:
        found = [
            charts.curve(name, charts.COLORS[i], [rows], column) for i, (name, column) in enumerate(columns)
        ]
        return [line for line in found if line]

    accuracy = lines(("training", "train_accuracy"), ("validation", "validation_accuracy"))
    loss = lines(("training", "ce"), ("validation", "validation_loss"))
    figures = [
        _figure("accuracy", "Accuracy", "", accuracy, percentage=True),
        _figure("cross-entropy", "Cross entropy", "", loss),
        *(
            _figure(
                f"term-{i}", f"{tables.display_name(term)} loss", "Before weighting.", lines((term, term))
            )
            for i, term in enumerate(terms)
        ),
        _figure("learning-rate", "Learning rate", "", lines(("learning rate", "learning_rate"))),
    ]
    if not any(figures):
        return _section("Training", "<p class=note>There is no readable metrics.csv in the folder.</p>")
    key = "".join(
        f"<li><i style='background:{charts.COLORS[i]}'></i>{name}</li>"
        for i, name in enumerate(("training", "validation"))
    )
    return _section("Training", f"<ul class=key>{key}</ul><div class=charts>{''.join(figures)}</div>")


def _effects_section(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    content = effects_html(methods)
    return _section("What each loss does", content) if content else ""


def _figure(name: str, title: str, about: str, curves: Sequence[Curve], percentage: bool = False) -> str:
    if not curves:
        return ""
    chart = _chart(charts.curves_chart(name, curves, percentage), f"{title} over the epochs")
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(about)}</figcaption>{chart}</figure>"


def _attention_section(folder: Path, attention: Figure | None) -> str:
    from eyeline.pages.pictures import data_uri

    path = folder / "attention.png"
    if attention is None and not path.is_file():
        return ""
    picture = data_uri(attention if attention is not None else path.read_bytes())
    return _section(
        "Where the networks look",
        "<p>Attention maps: bright where a layer of the network responds most strongly. Attention transfer "
        "teaches the student to look where the teacher looks.</p>",
        "<div class='scroll picture' tabindex=0 role=region aria-label='Attention maps'>"
        f'<img src="{picture}" alt="Attention maps of the networks beside their images"></div>',
    )


def _protocol_section(
    recipe: Mapping[str, Any], environment: Mapping[str, Any], verb: str, data: Mapping[str, Any]
) -> str:
    settings = {k: v for k, v in recipe.items() if k != "verb"}
    facts = dict(data)
    if isinstance(facts.get("classes"), list):
        facts["classes"] = f"{len(facts['classes'])}: " + ", ".join(map(str, facts["classes"]))
    where = dict(environment)
    if isinstance(where.get("command"), list):
        where["command"] = shlex.join(map(str, where["command"]))
    command = f"eyeline {escape(verb)} --config recipe.yaml --out ANOTHER_FOLDER"
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return _section(
        "How to repeat it",
        f"<p>In this folder, with the same versions:</p><pre><code>{command}</code></pre>",
        f"<p class=note>{_NOTES}</p>",
        _details("Every setting", _facts(settings, _MEANING)) if settings else "",
        _details("The data", _facts(facts)) if facts else "",
        _details("The environment", _facts(where)) if where else "",
        _details("recipe.yaml", f"<pre><code>{escape(text)}</code></pre>") if settings else "",
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _facts(values: Mapping[str, Any], meaning: Mapping[str, str] | None = None) -> str:
    lines = []
    for key, value in values.items():
        explained = f"<td>{escape(meaning.get(key, ''))}</td>" if meaning else ""
        lines.append(f"<tr><th scope=row>{escape(str(key))}</th><td>{_value(value)}</td>{explained}</tr>")
    return f"<div class=scroll><table class=facts><tbody>{''.join(lines)}</tbody></table></div>"


def _value(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
        return f"<pre>{escape(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip())}</pre>"
    if isinstance(value, list):
        return escape(", ".join(map(str, value))) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(str(value))


def _page(title: str, body: Sequence[str]) -> str:
    content = "\n".join(part for part in body if part)
    script = ""
    if "class=chart" in content:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script><script>{charts.SCRIPT}</script>"
    style = re.sub(r"\s*\n\s*", "", STYLE)
    # the policy lets a browser load nothing from anywhere, whatever the figures below may hold
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{content}
</main>
<footer>Made by <b>eyeline</b>. This page needs no network.</footer>
{script}
</body>
</html>
"""
