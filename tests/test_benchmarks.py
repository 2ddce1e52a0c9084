"""The benchmarks run, and store what they promise. Times are never checked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eyeline.losses import LOSSES

ROOT = Path(__file__).parent.parent
SECTIONS = ("step", "remembered", "methods", "attention", "augmentation", "engine")
# "start" runs cold processes: too slow for a test


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    out = tmp_path_factory.mktemp("benchmarks") / "new folder" / "quick.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--out", str(out), "--only", *SECTIONS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in out.parent.iterdir()] == ["quick.json"]
    return json.loads(out.read_text(encoding="utf-8")), done.stdout


def _section(run: tuple[dict, str], name: str) -> dict:
    return next(result for result in run[0]["results"] if result["section"] == name)


def test_record_says_where_and_when(run: tuple[dict, str]) -> None:
    record, _ = run
    assert record["kind"] == "benchmark"
    assert record["quick"] is True
    assert {"date", "commit", "device", "environment", "results"} <= record.keys()
    assert {"python", "versions", "processor", "cores", "threads", "peers"} <= record["environment"].keys()


def test_every_result_has_figures_and_ratios_in_order(run: tuple[dict, str]) -> None:
    record, _ = run
    assert len(record["results"]) == len(SECTIONS) + 1  # the augmentation of 3 and of 1 channels
    for result in record["results"]:
        assert result["unit"] in ("s", "images/s")
        assert result["rounds"] == 2
        for figures in (*result["values"].values(), *result["ratios"].values()):
            order = ("min", "lower_quartile", "median", "upper_quartile", "max")
            assert [figures[key] for key in order] == sorted(figures.values())


def test_step_is_compared_with_floor_plain_and_peer(run: tuple[dict, str]) -> None:
    step = _section(run, "step")
    peers = ["plain"]
    if importlib.util.find_spec("torchdistill") is not None:
        peers += ["torchdistill", "torchdistill*"]
    else:
        assert any("not installed" in note for note in step["notes"])
    for method in ("at", "kd", "at+kd"):
        for other in ("floor", *peers):
            assert step["ratios"][f"{method} eyeline / {other}"]["min"] > 0


def test_remembered_step_is_compared_with_student_live_plain_and_peer(run: tuple[dict, str]) -> None:
    ratios = _section(run, "remembered")["ratios"]
    for method in ("at", "kd", "at+kd"):
        assert {
            f"{method} remembered / student alone",
            f"{method} remembered / {method} live",
        } <= ratios.keys()
        for kind in ("live", "remembered"):
            assert f"images a second: {method} {kind} / plain" in ratios
    assert ratios["steps of a study, with memory / without"]["min"] > 0


def test_every_method_has_its_cost_and_a_row_in_the_documentation(
    run: tuple[dict, str], tmp_path: Path
) -> None:
    ratios = _section(run, "methods")["ratios"]
    for method in (*LOSSES, "at+kd"):
        assert f"{method} live / student alone" in ratios
    remembered = {name.split()[0] for name in ratios if "remembered" in name}
    # the others ask no teacher, or a learnable part of theirs sees the live one
    assert remembered == {*LOSSES, "at+kd"} - {"ce", "sym", "grad_reg", "aft"}

    page, record = tmp_path / "page.md", tmp_path / "record.json"
    page.write_text("before\n<!-- cost -->\nold\n<!-- /cost -->\nafter\n", encoding="utf-8")
    record.write_text(json.dumps(run[0]), encoding="utf-8")
    command = [sys.executable, "benchmarks/method_table.py", str(record), "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, *lines, last = page.read_text(encoding="utf-8").strip().splitlines()
    assert (first, lines[0], lines[-1], last) == ("before", "<!-- cost -->", "<!-- /cost -->", "after")
    assert lines[1:-1] == done.stdout.splitlines()
    assert [line.split("`")[1] for line in lines[3:-1]] == [*LOSSES, "at+kd"]
    figures = ratios["kd live / student alone"]
    shown = [f"{figures[k]:.2f}" for k in ("median", "lower_quartile", "upper_quartile")]
    assert "{} [{}, {}]".format(*shown) in next(line for line in lines if line.startswith("| `kd`"))


def test_table_fits_80_columns(run: tuple[dict, str]) -> None:
    _, printed = run
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_ratio_is_taken_within_each_round() -> None:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = measure
    spec.loader.exec_module(measure)
    result = measure.Result(
        "a machine that slows down", "s", {"a": [1, 2, 4], "b": [1, 2, 4], "c": [1, 2, 4]}
    )
    result.ratio("a", "b", "c", label="both")
    assert result.as_json()["ratios"]["a / both"] == dict.fromkeys(
        ("median", "lower_quartile", "upper_quartile", "min", "max"), 0.5
    )
