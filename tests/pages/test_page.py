"""The page: honest words, everything escaped, nothing from the network, charts that a browser draws."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from eyeline.errors import InputError
from eyeline.pages.page import read_metrics, run_page, study_findings, study_page, write_page
from eyeline.pages.pictures import attention_grid

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Reader(HTMLParser):
    """What a browser would make of the page: elements, addresses, and the text outside scripts and style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.charts: list[str] = []
        self._inside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
        if ("type", "application/json") in attrs:
            self.charts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data
        elif self.tags[-1] == ("script", {"type": "application/json"}):
            self.charts[-1] += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _strings(content: Any) -> list[str]:
    """Every text in a JSON document."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [text for each in content for text in _strings(each)]
    return [content] if isinstance(content, str) else []


def _entry(study: dict[str, Any], method: str) -> dict[str, Any]:
    return next(entry for entry in study["methods"] if entry["method"] == method)


def _set(study: dict[str, Any], **differences: tuple[float, float | None, float | None]) -> dict[str, Any]:
    """Keep these methods and give them these differences, significant where the interval leaves 0 out."""
    study["methods"] = [e for e in study["methods"] if e["method"] in {"ce", *differences}]
    for method, (mean, low, high) in differences.items():
        p = None if low is None or high is None else 0.03 if low * high > 0 else 0.3
        _entry(study, method)["difference"] = {"mean": mean, "low": low, "high": high, "seeds": 6} | {
            "p_holm": p,
            "p_flips": p,
        }
    return study


def test_headline_of_one_method(study: dict[str, Any]) -> None:
    better = _set(study, at=(0.018, 0.009, 0.027))
    assert study_findings(better)[0] == (
        "AT beats the student alone by 1.8 points (95 % interval 0.9 to 2.7, 6 seeds)"
    )
    undecided = _set(study, at=(0.003, -0.005, 0.011))
    assert study_findings(undecided)[0] == (
        "AT: no difference to the student alone shown: +0.3 points (95 % interval −0.5 to 1.1, 6 seeds)"
    )
    worse = _set(study, at=(-0.012, -0.02, -0.004))
    assert study_findings(worse)[0] == (
        "AT falls short of the student alone by 1.2 points (95 % interval −2.0 to −0.4, 6 seeds)"
    )
    single = _set(study, at=(0.018, None, None))
    single["methods"][-1]["difference"]["seeds"] = 1
    assert study_findings(single)[0] == (
        "AT: no difference to the student alone shown: +1.8 points, and no interval from 1 seed"
    )


def test_headline_of_several_methods_names_the_weak_ones_too(study: dict[str, Any]) -> None:
    _set(study, kd=(0.02, 0.01, 0.03), at=(0.003, -0.005, 0.011), sp=(-0.012, -0.02, -0.004))
    headline, sentences = study_findings(study)
    assert headline == "KD beats the student alone; SP falls short of it; no difference shown for AT"
    assert len(sentences) == 3
    _set(study, kd=(0.02, 0.01, 0.03), at=(0.02, 0.01, 0.03))
    assert study_findings(study)[0] == "KD and AT beat the student alone"
    _set(study, kd=(0.02, -0.01, 0.05), at=(0.02, None, None))
    assert study_findings(study)[0] == "No method is shown to differ from the student alone"
    _set(study)
    assert study_findings(study) == ("No difference to the student alone was measured", [])


def test_study_page_says_what_was_found_and_how_to_repeat_it(study_folder: Path) -> None:
    page = study_page(study_folder)
    read = _Reader(page)
    assert read.having("html") == [{"lang": "en"}]
    assert "<title>KD and AT beat the student alone; no difference shown for SP – eyeline</title>" in page
    for text in (
        "KD beats the student alone by",
        "500 labelled training images",
        "eyeline study --config recipe.yaml --out ANOTHER_FOLDER",
        "passes over the training images",  # what a setting means
        "fashion_mnist_sample",
        "eyeline: 0.1.0",
        "10: T-shirt/top, Trouser",
        "not significant",
    ):
        assert text in read.text, text
    assert len(page.encode()) < 6_000_000


def test_a_page_needs_no_network(study_folder: Path, run_folder: Path) -> None:
    for page in (study_page(study_folder), run_page(run_folder)):
        read = _Reader(page)
        addresses = [a[key] for _, a in read.tags for key in ("src", "href", "srcset", "data") if key in a]
        assert [a for a in addresses if not str(a).startswith("data:")] == []
        policies = [a["content"] for a in read.having("meta") if "http-equiv" in a]
        assert policies == [
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        ]
        style = page[page.index("<style>") : page.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style


def _hostile_study(folder: Path) -> Path:
    """Every string of the data is an attack on the page."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    for name in ("student", "teacher"):
        study[name]["model"] = HOSTILE
    study["data"] |= {"name": HOSTILE, "classes": [HOSTILE, "b"], HOSTILE: HOSTILE}
    study["environment"] |= {"command": ["eyeline", HOSTILE], "gpus": [HOSTILE], HOSTILE: {HOSTILE: HOSTILE}}
    study["recipe"] |= {HOSTILE: HOSTILE, "methods": {HOSTILE: {HOSTILE: [HOSTILE]}}}
    entry = _entry(study, "at")
    entry["method"] = HOSTILE
    for each in study["methods"]:
        for run in each["runs"]:
            run["seed"] = f"{HOSTILE}{run['seed']}"
    _entry(study, "sp")["runs"][0]["run"] = HOSTILE  # there is no such folder: named in a note
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return folder


def test_every_string_of_the_data_is_escaped(study_folder: Path, run_maker: Callable[..., Path]) -> None:
    plain = _Reader(study_page(study_folder))
    hostile = _Reader(study_page(_hostile_study(study_folder)))
    assert len(hostile.charts) == 4
    assert hostile.having("img") == []
    assert len(hostile.having("script")) == len(plain.having("script"))
    assert hostile.text.count(HOSTILE) >= 12
    for chart in hostile.charts:  # plotly reads some tags in its texts: none of the data may be one
        tags = set(re.findall(r"<[^>]*>?", " ".join(_strings(json.loads(chart)))))
        assert tags <= {"<br>", "<extra>", "</extra>"}

    network = {"model": HOSTILE, "parameters": HOSTILE}
    run = run_maker(
        study_folder / "run", student=network, teacher=network, method=HOSTILE, seed=HOSTILE, verb=HOSTILE
    )
    (run / "recipe.yaml").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    text = (run / "metrics.csv").read_text(encoding="utf-8").replace("at,", '"<script>x()</script>",', 1)
    (run / "metrics.csv").write_text(text, encoding="utf-8")
    read = _Reader(run_page(run))
    assert read.having("img") == []
    kinds = [a.get("type") for a in read.having("script")]
    assert kinds.count(None) == 2  # plotly and the few lines that draw
    assert "<script>x()</script> loss" in read.text


def test_missing_figures_are_an_en_dash(study_folder: Path) -> None:
    study = json.loads((study_folder / "study.json").read_text(encoding="utf-8"))
    for entry in study["methods"]:
        entry["summary"] = {}
        for run in entry["runs"]:
            run.update(test_accuracy=None, train_loss=None, attention_loss=None, teacher_agreement=None)
    _entry(study, "at")["difference"] = dict.fromkeys(("mean", "low", "high", "p_holm", "p_flips"))
    study["environment"]["clock"] = None
    (study_folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    read = _Reader(study_page(study_folder))
    assert not re.search(r"\b(nan|NaN|None)\b", read.text)
    assert read.text.count("–") > 10


def test_runs_without_curves_are_named(study_folder: Path) -> None:
    (study_folder / "method-2" / "seed-3" / "metrics.csv").unlink()
    (study_folder / "method-1" / "seed-0" / "metrics.csv").write_bytes(b"\xff\xfe\x00epoch")
    text = _Reader(study_page(study_folder)).text
    assert "for want of a readable metrics.csv: method-1/seed-0, method-2/seed-3." in text


def test_metrics_leave_out_what_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,ce,at\n1,0.5,\n2,nan,x\n3,0.25,0.125,9\n", encoding="utf-8")
    assert read_metrics(tmp_path) == [
        {"epoch": 1, "ce": 0.5},
        {"epoch": 2},
        {"epoch": 3, "ce": 0.25, "at": 0.125},
    ]
    assert read_metrics(tmp_path / "nowhere") == []


def test_attention_picture_is_carried_along(study_folder: Path) -> None:
    assert _Reader(study_page(study_folder)).having("img") == []
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    figure = attention_grid(images, {"AT": [torch.rand(1, 4, 4)]}, out=study_folder / "attention.png")
    for page in (study_page(study_folder), study_page(study_folder, figure)):
        (picture,) = _Reader(page).having("img")
        assert str(picture["src"]).startswith("data:image/png;base64,iVBOR")
        assert "Attention maps" in str(picture["alt"])


def test_run_page(run_folder: Path) -> None:
    read = _Reader(run_page(run_folder))
    for text in (
        "76.2 % of the test images are classified correctly",
        "wrn_16_1 taught by wrn_16_2.fashion_mnist with AT on fashion_mnist_sample",
        "One run cannot tell whether a method helps",
        "eyeline distill --config recipe.yaml",
        "AT loss",
        "Learning rate",
    ):
        assert text in read.text, text


def test_run_without_a_test_split_reports_validation(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    page = run_page(run_maker(tmp_path, test_accuracy=None))
    assert "75.5 % of the validation images are classified correctly" in page


def test_write_page_takes_either_folder(study_folder: Path, run_folder: Path, tmp_path: Path) -> None:
    assert write_page(study_folder) == study_folder / "report.html"
    assert "<p class=kicker>Study" in (study_folder / "report.html").read_text(encoding="utf-8")
    out = tmp_path / "new" / "page.html"
    assert write_page(run_folder, out) == out
    assert "<p class=kicker>Run" in out.read_text(encoding="utf-8")


def test_what_is_no_study_and_no_run_is_refused(tmp_path: Path, study_folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        InputError, match=r"neither study\.json nor result\.json.*make one with `eyeline study`"
    ):
        write_page(empty)
    (empty / "recipe.yaml").write_text("epochs: 1\n")
    with pytest.raises(InputError, match=r"not finished; continue it with --resume"):
        write_page(empty)
    (empty / "result.json").write_text("[1]")
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        write_page(empty)
    (study_folder / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json is damaged"):
        write_page(study_folder)
    with pytest.raises(InputError, match="expected the folder of a study"):
        study_page(empty)


def test_a_page_that_cannot_be_written_is_an_input_error(study_folder: Path) -> None:
    with pytest.raises(InputError, match="cannot write the page"):
        write_page(study_folder, study_folder / "study.json" / "page.html")


# --- in a browser -------------------------------------------------------------------------------------------


def _opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's document after its scripts have run in a headless Chromium, and what its console said."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: the page was not opened in a browser")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--window-size=1400,1000", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=5000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _charts(document: str) -> dict[str, str]:
    """The drawn content of every chart by its name."""
    parts = re.split(r'<div id="([\w-]+)"[^>]*class="js-plotly-plot"', document)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.whole
def test_browser_draws_the_charts_of_a_hostile_study(study_folder: Path, tmp_path: Path) -> None:
    page = write_page(_hostile_study(study_folder))
    document, console = _opened(page, tmp_path / "profile")
    assert console == []
    assert "<title>broken" not in document
    drawn = _charts(document)
    assert set(drawn) == {"intervals", "train-loss", "validation-accuracy", "attention-loss"}
    assert drawn["intervals"].count('class="xerror"') == 3  # an interval for every method
    assert drawn["intervals"].count('class="point"') == 3 * 7  # six seeds and their mean
    assert "&lt;/script&gt;" in drawn["intervals"]  # the name, as text
    lines = {name: drawn[name].count('class="js-line"') for name in set(drawn) - {"intervals"}}
    assert lines == {"train-loss": 8, "validation-accuracy": 8, "attention-loss": 2}  # a line and a band each
    widths = {re.search(r'class="main-svg"[^>]*width="([\d.]+)"', drawn[name]) for name in lines}
    sizes = [float(width[1]) for width in widths if width]
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 2  # side by side: each drawn when its place was known
    assert max(sizes) < 450


@pytest.mark.whole
def test_browser_draws_the_charts_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    document, console = _opened(write_page(run_folder), tmp_path / "profile")
    assert console == []
    lines = {name: content.count('class="js-line"') for name, content in _charts(document).items()}
    assert lines == {"accuracy": 2, "cross-entropy": 2, "term-0": 1, "learning-rate": 1}
