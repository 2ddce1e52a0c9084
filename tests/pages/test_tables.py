"""The table of a study: what every cell says, that nothing is cut at 80 columns, that weak results show."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eyeline.errors import InputError
from eyeline.pages import tables
from eyeline.pages.tables import (
    MISSING,
    count,
    display_name,
    loss,
    points,
    protocol,
    read_study,
    study_markdown,
    study_rows,
    study_table,
)
from eyeline.studies.statistics import holm


def _printed(study: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, record=True, color_system=None, file=io.StringIO())
    console.print(study_table(study))
    return console.export_text()


def _entry(study: dict[str, Any], method: str) -> dict[str, Any]:
    return next(entry for entry in study["methods"] if entry["method"] == method)


def test_order_is_teacher_student_alone_methods(study: dict[str, Any]) -> None:
    study["methods"].reverse()  # wherever the baseline stands in the file
    assert [row.method for row in study_rows(study)] == ["teacher", "student alone", "SP", "AT", "KD"]


def test_cells_say_what_the_study_says(study: dict[str, Any]) -> None:
    entry = _entry(study, "at")
    entry["summary"]["test_accuracy"] = {"mean": 0.7594, "std": 0.0042}
    entry["summary"]["train_accuracy"]["mean"] = 0.998
    entry["summary"]["train_loss"]["mean"] = 0.0183
    entry["summary"]["attention_loss"]["mean"] = 2.14e-4
    entry["summary"]["teacher_agreement"]["mean"] = 0.7776
    entry["difference"] |= {"mean": 0.0181, "low": 0.0092, "high": 0.0270}
    row = next(row for row in study_rows(study) if row.method == "AT")
    figures = ("175 k", "0.0183", "99.8", "2.1e-4", "77.8", "75.9 ± 0.4", "+1.8 [+0.9, +2.7]")
    assert row == ("AT", *figures, "better")
    teacher = study_rows(study)[0]
    assert teacher == ("teacher", "691 k", "0.0561", "98.2", MISSING, MISSING, "93.4", MISSING, "")


@pytest.mark.parametrize(
    ("mean", "changes", "expected"),
    [
        (0.01, {}, "better"),
        (-0.01, {}, "worse"),
        (0.01, {"p_holm": 0.06}, "not significant"),  # of one method alone it would be
        (0.01, {"p_flips": 0.0625}, "not significant"),
        (0.01, {"low": -0.001, "p_holm": 0.2, "p_flips": 0.2}, "not significant"),
        (0.01, {"low": None, "high": None, "p_holm": None, "p_flips": None}, "no interval"),
        (0.01, {"low": math.nan}, "no interval"),
        (0.01, {"p_holm": None}, "no interval"),  # not tested
    ],
)
def test_verdict(study: dict[str, Any], mean: float, changes: dict[str, Any], expected: str) -> None:
    tested = {"mean": mean, "low": mean - 0.005, "high": mean + 0.005, "p_holm": 0.05, "p_flips": 0.03125}
    _entry(study, "at")["difference"] = tested | changes
    row = next(row for row in study_rows(study) if row.method == "AT")
    assert row.verdict == expected
    assert ("[" in row.difference) == (expected != "no interval")
    undecided = expected in ("not significant", "no interval")
    assert (expected in study_markdown(study).split("\n\n")[0].split("| AT |")[1].split("\n")[0]) == undecided


def test_terminal_table_at_80_columns_cuts_nothing(study: dict[str, Any]) -> None:
    text = _printed(study)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in study_rows(study):
        line = next(line for line in text.splitlines() if line.startswith(row.method))
        assert line.split() == " ".join(row[:-1]).split()  # every cell whole and on one line
    assert text.count("not significant") == 1  # SP


def test_terminal_table_keeps_long_names_and_wide_intervals_whole(study: dict[str, Any]) -> None:
    _entry(study, "at")["method"] = "a-method-with-a-very-long-name-indeed"
    _entry(study, "kd")["difference"] |= {"mean": -0.1234, "low": -0.2345, "high": -0.1111}
    text = _printed(study)
    assert "…" not in text
    assert "−12.3" in text
    assert "−11.1" in text
    first = "".join(re.split(r"  +|\d", line)[0].strip() for line in text.splitlines())
    assert "a-method-with-a-very-long-name-indeed" in first


def test_markup_in_a_method_name_is_shown_as_it_is(study: dict[str, Any]) -> None:
    _entry(study, "at")["method"] = "[/]x"
    assert "[/]x" in _printed(study)


def test_markdown_escapes_and_has_as_many_cells_in_every_line(study: dict[str, Any]) -> None:
    _entry(study, "at")["method"] = "<script>|x"
    table, below = study_markdown(study).split("\n\n")
    assert "<script>" not in table.lower()
    assert "&lt;script&gt;\\|x" in table
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
    assert cells == {len(tables.HEADINGS) + 1}
    assert below.strip() == protocol(study)


def test_protocol_names_data_seeds_epochs(study: dict[str, Any]) -> None:
    text = protocol(study)
    assert text.startswith("fashion_mnist_sample, 500 labelled training images, 1,000 validation images, ")
    assert "5,000 test images, 6 seeds, 60 epochs" in text
    assert "\n" not in text
    study["recipe"]["views"] = 60
    assert protocol(study) == text
    study["recipe"]["views"] = 20
    assert "60 epochs, 20 views of each training image. Means" in protocol(study)


def test_protocol_says_what_is_tested(study: dict[str, Any], study_maker: Any, tmp_path: Path) -> None:
    text = protocol(study)
    assert text.endswith(
        "paired by seed and image, with its 95 % t interval over seeds and test images as two crossed "
        "samples; not significant: p above 0.05 in the t-test of that interval, after Holm's correction over "
        "3 methods, or in the sign-flip test over the 6 seeds."
    )
    assert "Agreement: test images that get the teacher's answer." in text
    for entry in study["methods"]:
        entry["summary"].pop("teacher_agreement")
        for run in entry["runs"]:
            run["teacher_agreement"] = None
    assert "Agreement" not in protocol(study)
    few = read_study(study_maker(tmp_path / "few", seeds=5))
    assert protocol(few).endswith("over the 5 seeds, which cannot be significant with fewer than 6.")
    assert {row.verdict for row in study_rows(few)} == {"", "not significant"}
    for entry in study["methods"]:
        entry.pop("difference", None)
    assert protocol(study).endswith(
        "it has no interval without test images, with one seed, or where all seeds agree in it."
    )


def test_one_seed_has_no_spread_and_no_interval(study_maker: Callable[..., Path], tmp_path: Path) -> None:
    study = read_study(study_maker(tmp_path, seeds=1))
    for row in study_rows(study)[2:]:
        assert "±" not in row.test_accuracy
        assert "[" not in row.difference
        assert row.verdict == "no interval"
    assert "1 seed," in protocol(study)
    assert "no interval" in protocol(study)


def test_missing_figures_are_an_en_dash(study: dict[str, Any]) -> None:
    entry = _entry(study, "at")
    del entry["difference"]
    entry["summary"] = {}
    for run in entry["runs"]:
        run.update(dict.fromkeys(run, None) | {"train_loss": math.nan, "train_accuracy": math.inf})
    study["teacher"] = {"model": "x"}
    row = next(row for row in study_rows(study) if row.method == "AT")
    assert row == ("AT", "175 k", *[MISSING] * 6, "")
    assert study_rows(study)[0] == ("teacher", *[MISSING] * 7, "")
    assert "nan" not in _printed(study).lower()


def test_mean_without_a_summary_is_that_of_the_runs(study: dict[str, Any]) -> None:
    entry = _entry(study, "at")
    before = tables.mean_of(entry, "train_loss")
    entry["summary"] = {}
    assert tables.mean_of(entry, "train_loss") == pytest.approx(before)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (850, "850"), (175_066, "175 k"), (999_600, "1 M"), (2_243_546, "2.24 M"), (25_557_032, "25.6 M"),
        (1.2e9, "1.2 B"), (None, MISSING),
    ],
)  # fmt: skip
def test_count(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (0.0352, "0.0352"), (12.34, "12.3"), (123.4, "123"), (0.00214, "2.1e-3"), (0.0, "0.00")],
)
def test_loss(value: float, text: str) -> None:
    assert loss(value) == text


def test_points_never_round_a_difference_to_nothing() -> None:
    assert points(0.0181, 0.0092, 0.027) == ["+1.8", "+0.9", "+2.7"]
    assert points(0.012, 0.0003, 0.02) == ["+1.20", "+0.03", "+2.00"]
    assert points(-0.004) == ["−0.4"]


def test_display_names() -> None:
    assert [display_name(m) for m in ("ce", "kd", "at", "at+kd", "sp", "my AT", "low+high", "at+low")] == [
        "student alone", "KD", "AT", "AT + KD", "SP", "my AT", "low + high", "AT + low",
    ]  # fmt: skip


def _damage(key: str, value: Any) -> Callable[[dict[str, Any]], str]:
    def change(study: dict[str, Any]) -> str:
        changed = copy.deepcopy(study)
        changed[key] = value
        return json.dumps(changed)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda study: "{", "is damaged (Expecting"),
        (_damage("data", {"train": math.nan}), "is damaged (NaN is no JSON)"),
        (lambda study: "[]", '"kind": "study"'),
        (_damage("kind", "run"), '"kind": "study"'),
        (_damage("teacher", None), "'teacher' is not a mapping"),
        (_damage("methods", {"at": 1}), "'methods' is not a list"),
        (_damage("methods", [{"method": "at", "runs": [1]}]), "'methods' is not a list"),
    ],
)
def test_damaged_study(study_folder: Path, study: dict[str, Any], change: Any, said: str) -> None:
    (study_folder / "study.json").write_text(change(study), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_study(study_folder)
    assert "eyeline study" in str(caught.value)  # how to make one


def test_studies_that_are_published_together_are_corrected_together(
    study_maker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    parts = [read_study(study_maker(tmp_path / str(number))) for number in range(2)]
    for entry, name in zip(parts[1]["methods"][1:], ("hint", "cam", "cat"), strict=True):
        entry["method"] = name
    whole = importlib.import_module("publish_study").together(parts)
    p = [entry["difference"]["p"] for entry in whole["methods"][1:]]
    assert len(p) == 6
    assert [entry["difference"]["p_holm"] for entry in whole["methods"][1:]] == holm(p)
    assert "Holm's correction over 6 methods" in protocol(whole)


def test_missing_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a study"):
        read_study(tmp_path)
