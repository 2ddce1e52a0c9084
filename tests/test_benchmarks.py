"""The benchmarks run, and store what they promise. Times are never checked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# "start" runs cold processes: too slow for a test
SECTIONS = ("step", "attention", "augmentation", "files", "engine")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    out = tmp_path_factory.mktemp("benchmarks") / "new folder" / "quick.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--out", str(out), "--only", *SECTIONS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in out.parent.iterdir()] == ["quick.json"]
    return json.loads(out.read_text(encoding="utf-8")), done.stdout


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
    record, _ = run
    step = record["results"][0]
    peers = ["plain"]
    if importlib.util.find_spec("torchdistill") is not None:
        peers += ["torchdistill", "torchdistill*"]
    else:
        assert any("not installed" in note for note in step["notes"])
    for method in ("at", "kd", "at+kd"):
        for other in ("floor", *peers):
            assert step["ratios"][f"{method} eyeline / {other}"]["min"] > 0


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
