"""A run goes on as it began: its precision, its devices, compiled or not; or somebody says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import eyeline
from eyeline.errors import InputError
from eyeline.runs.folder import RunFolder
from eyeline.runs.run import Run
from eyeline.training import compiling
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

pytestmark = pytest.mark.whole

AUTO = {**SETTINGS, "epochs": 2, "checkpoint_every": None}


def distill(out: Path, **settings: Any) -> Run:
    return eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(out), **{**AUTO, **settings})


def study(out: Path, **settings: Any) -> Run:
    given = {"methods": ["kd"], "seeds": 2, **AUTO, **settings}
    return eyeline.study(TinyNet, tiny_net(2), tiny_data(), str(out), **given)


def recipe(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def same(one: Path, other: Path) -> bool:
    weights = "student.safetensors"
    return (one / weights).read_bytes() == (other / weights).read_bytes()


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this machine have bf16 in hardware, or not."""

    def set_to(there: bool) -> None:
        monkeypatch.setattr("eyeline.device.has_native_bf16", lambda device: there)

    return set_to


class CutOff(BaseException):
    pass


def cut_off(begin: Any, out: Path, saves: int = 1, **settings: Any) -> None:
    save, done = RunFolder.save_checkpoint, 0

    def counted(self: RunFolder, state: Any) -> None:
        nonlocal done
        save(self, state)
        done += 1
        if done == saves:
            raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", counted)
        with pytest.raises(CutOff):
            begin(out, **settings)


# --- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("began", [True, False])
def test_a_run_goes_on_in_the_precision_in_which_it_began(tmp_path: Path, bf16: Any, began: bool) -> None:
    """Where hardware has bf16 one that began in float32 stays there; one in bf16 goes on in bf16."""
    precision = {True: "bf16", False: "float32"}[began]
    distill(tmp_path / "whole", precision=precision)
    bf16(began)
    cut_off(distill, tmp_path / "run")
    assert recipe(tmp_path / "run")["precision"] == precision
    bf16(True)
    distill(tmp_path / "run", resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("begin", [distill, study])
def test_it_does_not_go_on_in_another_precision_without_a_word(
    tmp_path: Path, bf16: Any, begin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bf16(True)
    cut_off(begin, tmp_path / "run")
    bf16(False)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(
        InputError,
        match=r"run began with precision=bf16, which this machine does not have; to go on otherwise, no "
        r"longer bit for bit, give --precision float32, or --precision bf16, which is slow here$",
    ):
        begin(tmp_path / "run", resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    capsys.readouterr()
    begin(tmp_path / "run", resume=True, precision="float32")
    said = "run goes on with precision=float32; it began with precision=bf16: no longer bit for bit"
    assert said in capsys.readouterr().err
    assert recipe(tmp_path / "run")["precision"] == "float32"
    resumed = json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"]
    assert resumed[-1]["changed"] == {"precision": ["bf16", "float32"]}
    begin(tmp_path / "run", resume=True)  # is done, or goes on as it was said
    begin(tmp_path / "run", resume=True, precision="float32")
    assert "no longer" not in capsys.readouterr().err


def test_a_word_for_the_same_is_no_change(
    tmp_path: Path, bf16: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """bf16 where it is emulated, as it may have been from the start."""
    distill(tmp_path / "whole", precision="bf16")
    bf16(True)
    cut_off(distill, tmp_path / "run")
    bf16(False)
    distill(tmp_path / "run", resume=True, precision="bf16")
    assert "no longer" not in capsys.readouterr().err
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_is_answered_anywhere_and_never_for_another_precision(
    tmp_path: Path, bf16: Any
) -> None:
    bf16(True)
    distill(tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    bf16(False)
    distill(tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"another recipe \(precision was 'bf16', is 'float32'\)"):
        distill(tmp_path / "run", resume=True, precision="float32")
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before


def test_the_finished_runs_of_a_study_stay_in_their_precision(tmp_path: Path, bf16: Any) -> None:
    bf16(True)
    cut_off(study, tmp_path / "run", saves=3)  # within the second run, of kd
    first = (tmp_path / "run" / "ce" / "seed-0" / "student.safetensors").stat().st_mtime_ns
    bf16(False)
    study(tmp_path / "run", resume=True, precision="float32")
    assert (tmp_path / "run" / "ce" / "seed-0" / "student.safetensors").stat().st_mtime_ns == first
    kept = {place: recipe(tmp_path / "run" / place)["precision"] for place in ("ce/seed-0", "kd/seed-0")}
    assert kept == {"ce/seed-0": "bf16", "kd/seed-0": "float32"}


# --- devices ------------------------------------------------------------------------------------------------


def test_devices_that_are_not_here_are_named_with_those_that_are(tmp_path: Path) -> None:
    settings = {"accelerator": "auto", "precision": "float32"}
    cut_off(distill, tmp_path / "run", **settings)
    began = recipe(tmp_path / "run")
    here = {name: began[name] for name in ("accelerator", "devices")}
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    text = text.replace(f"accelerator: {here['accelerator']}", "accelerator: tpu")
    text = text.replace(f"devices: {here['devices']}", "devices: 64")
    (tmp_path / "run" / "recipe.yaml").write_text(text)  # as if it had begun elsewhere
    with pytest.raises(
        InputError,
        match=r"began with accelerator=tpu, devices=64, which this machine does not have; .* give "
        rf"--accelerator {here['accelerator']} --devices {here['devices']}$",
    ):
        distill(tmp_path / "run", resume=True, **settings)
    distill(tmp_path / "run", resume=True, **{**settings, **here})
    assert {name: recipe(tmp_path / "run")[name] for name in here} == here


# --- compiled code ------------------------------------------------------------------------------------------


def test_what_was_compiled_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was measured: not on a resume, not from the recipe of the run."""
    measured, compiled = [], []

    def seconds(ask: Any, size: int) -> float:
        measured.append(size)
        return 1000.0 if len(measured) % 2 else 1.0  # before, and compiled

    monkeypatch.setattr(compiling, "_FEW_STEPS", 1)
    monkeypatch.setattr(compiling, "_seconds", seconds)
    monkeypatch.setattr(compiling, "_compile", lambda part, sizes, fold: compiled.append(part.name))
    options = {"epochs": 3, "precision": "float32"}
    cut_off(distill, tmp_path / "run", **options)
    assert measured
    chosen = recipe(tmp_path / "run")["compile"]
    assert chosen == compiled == ["teacher", "losses", "student"]
    measured.clear()
    compiled.clear()
    distill(tmp_path / "run", resume=True, **options)
    distill(tmp_path / "again", **{**options, "compile": chosen})
    assert not measured
    assert compiled == 2 * chosen
    assert recipe(tmp_path / "again")["compile"] == chosen
