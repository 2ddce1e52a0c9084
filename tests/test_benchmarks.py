"""The benchmarks run, and store what they promise. Times are never checked."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from eyeline.distiller import Distiller
from eyeline.losses import LOSSES
from tiny import tiny_data

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("benchmarks")]

ROOT = Path(__file__).parent.parent
# section -> its results; "start" and "parallel" run cold processes: too slow for a test
SECTIONS = {
    "step": 1,
    "convolutions": 1,
    "remembered": 1,
    "methods": 1,
    "attention": 1,
    "augmentation": 2,  # of 3 and of 1 channels
    "files": 1,
    "encoding": 2,  # float16 and uint8
    "engine": 1,
    "study": 2,  # and filling the memory
    "scaling": 4,
    "stacked": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """All sections, of two processes at once: most of their time is that of imports."""

    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    folders = [tmp_path_factory.mktemp("benchmarks") for _ in range(2)]

    def half(number: int) -> tuple[dict, str]:
        out = folders[number] / "new folder" / "quick.json"
        command = [sys.executable, "benchmarks/run.py", "--quick", "--out", str(out), "--only"]
        command += list(SECTIONS)[number::2]
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [file.name for file in out.parent.iterdir()] == ["quick.json"]
        return json.loads(out.read_text(encoding="utf-8")), done.stdout

    with ThreadPoolExecutor() as pool:
        (record, shown), (other, more) = pool.map(half, range(2))
    return {**record, "results": record["results"] + other["results"]}, shown + more


@pytest.fixture
def benchmark_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


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
    assert Counter(result["section"] for result in record["results"]) == SECTIONS
    for result in record["results"]:
        assert result["unit"] in ("s", "images/s", "relative")
        assert result["rounds"] == 2
        for figures in (*result["values"].values(), *result["ratios"].values()):
            order = ("min", "lower_quartile", "median", "upper_quartile", "max")
            assert [figures[key] for key in order] == sorted(figures.values())


def test_encoding_errs_as_its_precision_says(run: tuple[dict, str]) -> None:
    half, bytes_ = (result for result in run[0]["results"] if result["section"] == "encoding")
    assert "float16" in half["title"]
    assert "uint8" in bytes_["title"]
    for name, error in half["values"].items():
        assert 0 < error["max"] < 2**-10, name
    # logits are no maps: both keep them in float16
    assert bytes_["values"]["kd, loss"] == half["values"]["kd, loss"]
    assert bytes_["values"]["at, gradient"]["median"] > half["values"]["at, gradient"]["median"]


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


def test_study_is_timed_with_and_without_memory(run: tuple[dict, str]) -> None:
    study, filling = (result for result in run[0]["results"] if result["section"] == "study")
    assert study["ratios"]["with memory / without memory"]["min"] > 0
    for kind in ("with memory", "without memory"):
        assert study["facts"][f"peak RSS {kind}, bytes"] > 1e8
    # three maps of 16 x 16, 8 x 8 and 4 x 4 and 10 logits in float16, scales, and the files' headers
    assert 2 * (336 + 10) < filling["facts"]["memory, bytes a view an image"] < 2 * (336 + 10) + 250
    assert filling["facts"]["fill rate, images a second, median"] > 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_of_a_benchmark_end_with_it(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "busy.py").write_text(
        "import os, pathlib, tempfile, time\n"
        "def make(place):\n"
        "    with tempfile.TemporaryDirectory(dir=place):\n"
        "        pathlib.Path(place, str(os.getpid())).touch()\n"
        "        time.sleep(600)\n"
        "        pathlib.Path(place, 'went on').touch()\n"
    )
    (tmp_path / "running").mkdir()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # even if ignored
        "import busy, worker\n"
        f"workers = [worker.Worker(busy.make, {str(tmp_path / 'running')!r}) for _ in range(2)]\n"
        "workers[0].variants()\n"
    )
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE
    ) as started:

        def running() -> list[int]:
            return [int(file.name) for file in (tmp_path / "running").iterdir() if file.name.isdecimal()]

        while len(running()) < 2 and started.poll() is None:
            time.sleep(0.1)
        started.send_signal(how)
        started.communicate()  # all that hold the pipe have ended
    assert (
        len(running()) == len(list((tmp_path / "running").iterdir())) == 2
    )  # nor is a temporary folder left


def test_slope_is_that_of_a_power(benchmark_path: None) -> None:
    scaling = importlib.import_module("scaling")
    samples = {
        f"{kind}, {n}": [0.9 * c * n**p, c * n**p, 2 * c * n**p]
        for kind, c, p in (("live", 3.0, 2), ("remembered", 0.5, 1))
        for n in (1, 2, 5)
    }
    facts = scaling._fitted("by size", samples).facts
    assert facts == pytest.approx({"slope, live": 2, "slope, remembered": 1})


def test_growth_is_drawn(run: tuple[dict, str], tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps(run[0]), encoding="utf-8")
    out = tmp_path / "scaling.png"
    command = [sys.executable, "benchmarks/plot_scaling.py", str(record), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100


def test_table_fits_80_columns(run: tuple[dict, str]) -> None:
    _, printed = run
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_ratio_is_taken_within_each_round(benchmark_path: None) -> None:
    measure = importlib.import_module("measure")
    result = measure.Result(
        "a machine that slows down", "s", {"a": [1, 2, 4], "b": [1, 2, 4], "c": [1, 2, 4]}
    )
    result.ratio("a", "b", "c", label="both")
    assert result.as_json()["ratios"]["a / both"] == dict.fromkeys(
        ("median", "lower_quartile", "upper_quartile", "min", "max"), 0.5
    )
    measured = measure.Result("", "s", {"fast": [1, 2], "slow": [3, 8]})
    measured.rate("fast", "slow", label="slow")
    assert measured.ratios == {"images a second: fast / slow": [3, 4]}


def test_what_precedes_the_first_step_is_counted(benchmark_path: None) -> None:
    network, data = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), tiny_data()

    def work() -> None:
        for images in (1, 2, 1):  # and the parts of a network count with it
            network(torch.zeros(images, 1, 12, 12))
        data.fingerprint()
        Distiller(network, method="ce").close()

    with importlib.import_module("process").counted() as counts:
        work()
    work()
    assert counts == {"one-image passes": 2, "fingerprints": 1, "distillers": 1}
