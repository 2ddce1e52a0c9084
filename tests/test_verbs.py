"""The verbs from end to end, on data that takes seconds."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import eyeline
import eyeline.training.run as one_run
from eyeline.cli import main
from eyeline.data.batches import evaluation_batches
from eyeline.data.preprocess import Normalization
from eyeline.data.sources import load_data
from eyeline.data.splits import ImageData, MemorySplit
from eyeline.device import has_native_bf16
from eyeline.distiller import Distiller
from eyeline.errors import InputError, TrainingStopped
from eyeline.files import LOCK, locked
from eyeline.runs.answers import read_answers
from eyeline.runs.folder import is_ours
from eyeline.runs.run import Run
from eyeline.settings import Settings
from eyeline.studies.statistics import holm, paired_difference
from eyeline.training.evaluation import Evaluation
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net, tiny_split

pytestmark = pytest.mark.whole

SHORT: dict[str, Any] = {**SETTINGS, "epochs": 2, "checkpoint_every": None, "precision": "float32"}
SAMPLE: dict[str, Any] = {
    "train_size": 60,
    "batch_size": 20,
    "epochs": 1,
    "accelerator": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def small() -> ImageData:
    """The first images of the sample, so that an evaluation takes no time."""
    data = load_data("fashion_mnist_sample", Settings(train_size=100))
    first = torch.arange(100)
    assert data.test is not None
    return dataclasses.replace(data, validation=data.validation.subset(first), test=data.test.subset(first))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, small: ImageData) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    return eyeline.train("wrn_10_1", small, str(out), **{**SHORT, "batch_size": 25}).folder


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    out = tmp_path_factory.mktemp("distilled") / "run"
    return eyeline.distill("wrn_10_1", str(teacher), "fashion_mnist_sample", str(out), **SAMPLE).folder


def figures(network: nn.Module, data: ImageData, split: MemorySplit) -> tuple[float, float]:
    """Accuracy and cross entropy, computed plainly."""
    images = Normalization(data.mean, data.std)(split.images)
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(50)]).double()
    chosen = logits.log_softmax(1)[torch.arange(len(split)), split.labels]
    return float((logits.argmax(1) == split.labels).double().mean()), float(-chosen.mean())


# --- train and distill --------------------------------------------------------------------------------------


def test_the_result_is_that_of_the_network_in_the_folder(teacher: Path, small: ImageData) -> None:
    result, network = json.loads((teacher / "result.json").read_text()), eyeline.load(teacher)
    assert not network.training
    for name, split in (("validation", small.validation), ("test", small.test)):
        accuracy, loss = figures(network, small, split)  # type: ignore[arg-type]
        assert result[f"{name}_accuracy"] == accuracy
        assert result[f"{name}_loss"] == pytest.approx(loss, rel=1e-4)
    assert (result["kind"], result["verb"], result["method"], result["seed"]) == ("run", "train", "ce", 0)
    assert result["model"] == {
        "model": "wrn_10_1",
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    assert (result["data"]["train"], result["data"]["validation"], result["data"]["test"]) == (100, 100, 100)


def test_the_attention_loss_is_that_of_the_loss(sample_run: Path, teacher: Path) -> None:
    result = json.loads((sample_run / "result.json").read_text())
    data = load_data("fashion_mnist_sample")
    distiller = Distiller(eyeline.load(sample_run), eyeline.load(teacher), "at").eval()
    total = 0.0
    for batch in evaluation_batches(data.validation, Normalization(data.mean, data.std), batch_size=250):
        with torch.no_grad():
            total += float(distiller(batch.images, batch.labels)["at"]) * len(batch.labels)
    # the run may have been evaluated in bfloat16
    assert result["attention_loss"] == pytest.approx(total / len(data.validation), rel=0.02)
    assert result["layers"] == [["group1", "group1"], ["group2", "group2"], ["group3", "group3"]]
    assert result["teacher"]["model"] == str(teacher)


def test_a_recipe_repeats_its_run(tmp_path: Path, sample_run: Path) -> None:
    again = tmp_path / "again"
    assert main(["distill", "--config", str(sample_run / "recipe.yaml"), "--out", str(again)]) == 0
    for name in ("student.safetensors", "result.json", "model.json", "recipe.yaml"):
        assert (again / name).read_bytes() == (sample_run / name).read_bytes(), name


def test_a_recipe_says_what_auto_meant(tmp_path: Path, sample_run: Path) -> None:
    recipe = yaml.safe_load((sample_run / "recipe.yaml").read_text())
    precision = "bf16" if has_native_bf16("cpu") else "float32"
    meant = {"accelerator": "cpu", "devices": 1, "precision": precision, "augmentation": "crop+flip"}
    meant |= {"learning_rate": 0.1, "weight_decay": 5e-4, "schedule": "step", "view_seed": 0}
    assert {name: recipe[name] for name in meant} == meant
    study(tmp_path / "s", methods=["kd"], seeds=[3], epochs=1, optimizer="adamw", precision="auto")
    whole, one = (
        yaml.safe_load((tmp_path / "s" / place / "recipe.yaml").read_text()) for place in (".", "kd/seed-3")
    )
    meant |= {"learning_rate": 0.05, "weight_decay": 0.05, "schedule": "cosine", "view_seed": 3}
    assert {name: one[name] for name in meant} == meant
    assert {name: whole[name] for name in meant} == {**meant, "view_seed": None}  # each seed has its own


def test_the_files_of_a_run(sample_run: Path) -> None:
    assert sorted(p.name for p in sample_run.iterdir()) == [
        *("doctor.json", "environment.json", "metrics.csv", "model.json", "recipe.yaml", "result.json"),
        *("student.safetensors", "tensorboard", "test_answers.safetensors"),
    ]
    environment = json.loads((sample_run / "environment.json").read_text())
    assert environment["versions"]["eyeline"] == eyeline.__version__
    assert environment["versions"]["torch"]
    recipe = yaml.safe_load((sample_run / "recipe.yaml").read_text())
    assert recipe["method"]["at"]["weight"] == 1000
    assert set(recipe) == {
        *("student", "teacher", "data", "method", "layers", "student_weights", "teacher_weights"),
        *(f.name for f in dataclasses.fields(Settings)),
    }


def test_a_loaded_network_answers_for_images_as_they_come(teacher: Path, small: ImageData) -> None:
    network = eyeline.load(str(teacher))
    assert network.classes == small.classes
    assert isinstance(small.test, MemorySplit)
    pixels = small.test.images[:4]
    pictures = [Image.fromarray(p[0].numpy()) for p in pixels]
    expected = network(Normalization(small.mean, small.std)(pixels))
    preprocess: Any = network.preprocess
    assert torch.equal(network(preprocess(pixels)), expected)
    assert torch.equal(network(preprocess(pictures)), expected)
    assert torch.equal(network(preprocess(pictures[0].convert("RGB"))), network(preprocess(pixels[:1])))


def test_python_objects(tmp_path: Path) -> None:
    data, student = tiny_data(), tiny_net(1)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    run = eyeline.distill(student, tiny_net(2), data, str(tmp_path / "run"), **SHORT)
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())  # a copy was trained
    with pytest.raises(InputError, match=r"trained from a Python object; give it: eyeline\.load\("):
        eyeline.load(run.folder)
    network = eyeline.load(run.folder, model=tiny_net(7))
    assert isinstance(data.test, MemorySplit)
    accuracy, loss = figures(network, data, data.test)
    assert run.result["test_accuracy"] == accuracy
    assert run.result["test_loss"] == pytest.approx(loss, rel=1e-4)
    made = eyeline.distill(lambda: tiny_net(1), tiny_net(2), data, str(tmp_path / "made"), **SHORT)
    assert made.result["test_loss"] == run.result["test_loss"]


def test_a_run_starts_from_another(tmp_path: Path, teacher: Path, small: ImageData) -> None:
    weights = teacher / "model.safetensors"
    options: dict[str, Any] = {**SHORT, "epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0}
    one = eyeline.train(str(teacher), small, str(tmp_path / "one"), **options)
    other = eyeline.train("wrn_10_1", small, str(tmp_path / "other"), weights=str(weights), **options)
    ours, theirs, source = (
        one.load().state_dict(),
        other.load().state_dict(),
        eyeline.load(teacher).state_dict(),
    )
    for name, tensor in source.items():
        assert torch.equal(ours[name], theirs[name])
        if name.endswith("conv.weight"):
            assert torch.equal(ours[name], tensor)
    with pytest.raises(InputError, match="pretrained is for a network given by name"):
        eyeline.train(str(teacher), small, str(tmp_path / "x"), pretrained=True)


def test_a_run_that_is_needed_is_not_overwritten(teacher: Path, small: ImageData) -> None:
    before = sorted(teacher.iterdir())
    for out in (teacher, teacher.parent):
        with pytest.raises(
            InputError, match=r"is to be overwritten, but .* is needed|holds files that are no run"
        ):
            eyeline.distill("wrn_10_1", str(teacher), small, str(out), overwrite=True, **SHORT)
    assert sorted(teacher.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "wrn_10_9x"}, "unknown model"),
        ({"method": "atk"}, "unknown loss 'atk'"),
        ({"layers": ["groop1"]}, r"unknown layer .*'groop1'; did you mean 'group1'"),
        ({"teacher": "wrn_10_1"}, "no trained weights are published for wrn_10_1; give a run folder"),
        ({"teacher": TinyNet()}, "3 classes|answers"),
        ({"epochs": 0}, "epochs is 0; expected a whole number of at least 1"),
        ({"views": 0}, "views is 0; expected a whole number of at least 1"),
        ({"memory": ""}, "memory is ''; expected a name or a path"),
        ({"memory_budget": 0.0}, r"memory_budget is 0\.0; expected a number of GB above 0"),
        ({"memory_precision": "float8"}, "unknown memory_precision 'float8'; did you mean 'float"),
        ({"epoch": 1}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"student": 3}, "model is 3; expected a name, a run folder"),
        ({"accelerator": "abacus"}, "cannot use accelerator='abacus'"),
        ({"augmentation": "resized-crop"}, "'resized-crop' is for folders of images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_show_before_anything_is_made(
    tmp_path: Path, teacher: Path, small: ImageData, change: dict[str, Any], message: str
) -> None:
    given = {
        "student": "wrn_10_1",
        "teacher": str(teacher),
        "data": small,
        "out": str(tmp_path / "run"),
        **SHORT,
    }
    with pytest.raises(InputError, match=message):
        eyeline.distill(**{**given, **change})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_damaged_run_cannot_be_loaded(tmp_path: Path, teacher: Path, name: str) -> None:
    for file in ("model.json", "model.safetensors"):
        (tmp_path / file).write_bytes((teacher / file).read_bytes())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"damaged|truncated"):
        eyeline.load(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json is damaged, or of another version"):
        eyeline.load(tmp_path)
    with pytest.raises(InputError, match="does not exist; expected a finished run"):
        eyeline.load(tmp_path / "nowhere")


def test_a_folder_of_images(tmp_path: Path) -> None:
    """Trained, loaded, and the test accuracy found again with the network's own preprocessing."""
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.RandomState(20 * label + i).randint(0, 100, (40 + i, 48, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    options: dict[str, Any] = {**SHORT, "image_size": 32, "workers": 0}
    run = eyeline.train("wrn_10_1", f"folder:{tmp_path / 'images'}", str(tmp_path / "run"), **options)
    network, data = run.load(), load_data(f"folder:{tmp_path / 'images'}")
    assert network.classes == ("dark", "light")
    assert data.test is not None
    preprocess: Any = network.preprocess
    with torch.no_grad():
        logits = network(preprocess([data.test.load(i) for i in range(len(data.test))]))  # type: ignore[union-attr]
    expected = torch.nn.functional.cross_entropy(logits, data.test.labels)
    assert run.result["test_loss"] == pytest.approx(float(expected), rel=1e-4)


# --- the trial step -----------------------------------------------------------------------------------------


def spoilt(value: float, where: str, **options: Any) -> TinyNet:
    network = tiny_net(2, **options)
    with torch.no_grad():
        network.get_parameter(where)[0] = value
    return network


@pytest.mark.parametrize("method", ["kd", "at", "act", "hint", "cam", "cat", "aft", "gat"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_weights_that_are_not_finite_show_before_anything_is_made(
    tmp_path: Path, method: str, value: float, who: str
) -> None:
    networks = {"student": tiny_net(1), "teacher": tiny_net(2), who: spoilt(value, "low.0.weight")}
    data, out = tiny_data(), str(tmp_path / "run")
    with pytest.raises(InputError, match=r"(is|are) not finite (on images|for an image) of noise"):
        eyeline.distill(**networks, data=data, out=out, method=method, **SHORT)
    with pytest.raises(InputError, match=r"(is|are) not finite (on images|for an image) of noise"):
        eyeline.study(**networks, data=data, out=out, methods=[method], **SHORT)
    assert not list(tmp_path.iterdir())
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in networks.values() for m in n.modules())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": spoilt(float("-inf"), "head.bias"), "method": "kd"}, "kd of method kd"),
        ({"student": spoilt(-3e38, "head.weight"), "method": "at"}, "ce of method at"),
        ({"method": {"at": {"weight": 1e300}}}, "the gradient of method at"),
    ],
    ids=["teacher", "student", "weight"],
)
def test_a_loss_that_is_too_large_shows_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    given = {"student": tiny_net(1), "teacher": tiny_net(2), "data": tiny_data(), **change}
    with pytest.raises(InputError, match=f"{named} is not finite on images of noise"):
        eyeline.distill(**given, out=str(tmp_path / "run"), **SHORT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["ce", "at+kd", "cat+aft", "gat+sym"])
def test_the_trial_step_leaves_everything_as_it_was(tmp_path: Path, method: str, monkeypatch: Any) -> None:
    class CutOff(BaseException):
        pass

    student, teacher = tiny_net(1), tiny_net(2, width=8)
    teacher.dropout.eval()
    before = {who: copy.deepcopy(n.state_dict()) for who, n in (("s", student), ("t", teacher))}
    modes = [module.training for module in student.modules()]
    seen: list[dict[str, torch.Tensor]] = []
    torch.manual_seed(5)
    random_state = torch.get_rng_state()

    def started(distiller: Distiller, *_: Any, **options: Any) -> None:
        seen.append({n: t.clone() for n, t in distiller.student.state_dict().items()})
        raise CutOff

    monkeypatch.setattr("eyeline.training.run.fit", started)
    with pytest.raises(CutOff):
        eyeline.distill(student, teacher, tiny_data(), str(tmp_path / "run"), method=method, **SHORT)
    assert torch.equal(torch.get_rng_state(), random_state)
    for found, kept in ((seen[0], "s"), (student.state_dict(), "s"), (teacher.state_dict(), "t")):
        assert all(torch.equal(tensor, before[kept][name]) for name, tensor in found.items())
    assert [module.training for module in student.modules()] == modes
    assert not any(p.grad is not None for n in (student, teacher) for p in n.parameters())


# --- study --------------------------------------------------------------------------------------------------


def study(out: Path, **changes: Any) -> Run:
    given = {
        "student": TinyNet,
        "teacher": tiny_net(2),
        "data": tiny_data(),
        "methods": ["kd", "at"],
        "seeds": 2,
    }
    return eyeline.study(**{**given, "out": str(out), **SHORT, **changes})


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("study") / "s").folder


def test_study_json(studied: Path) -> None:
    content = json.loads((studied / "study.json").read_text())
    assert (content["kind"], content["verb"], content["baseline"]) == ("study", "study", "ce")
    assert content["recipe"]["seeds"] == [0, 1]
    assert content["environment"]["versions"]["eyeline"]
    assert {k: content["data"][k] for k in ("name", "classes", "train", "validation", "test")} == {
        **{"name": "tiny", "classes": ["a", "b", "c"]},
        **{"train": 50, "validation": 21, "test": 20},
    }
    assert content["student"] == {
        "model": "TinyNet",
        "parameters": sum(p.numel() for p in TinyNet().parameters()),
    }
    assert set(content["teacher"]) == {
        *("model", "parameters", "test_accuracy", "train_accuracy", "train_loss", "test_loss")
    }
    assert [entry["method"] for entry in content["methods"]] == ["ce", "kd", "at"]
    baseline = [run["test_accuracy"] for run in content["methods"][0]["runs"]]
    for entry in content["methods"]:
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        for seed, run in enumerate(entry["runs"]):
            assert run["run"] == f"{entry['method']}/seed-{seed}"
            result = json.loads((studied / run["run"] / "result.json").read_text())
            for name in (
                "train_loss",
                "train_accuracy",
                "attention_loss",
                "validation_accuracy",
                "test_accuracy",
                "teacher_agreement",
            ):
                assert run[name] == result[name] is not None
                values = [r[name] for r in entry["runs"]]
                assert entry["summary"][name]["mean"] == pytest.approx(np.mean(values))
                assert entry["summary"][name]["std"] == pytest.approx(np.std(values, ddof=1))
        if entry["method"] == "ce":
            assert "difference" not in entry
            continue
        difference = entry["difference"]
        each = [r["test_accuracy"] - b for r, b in zip(entry["runs"], baseline, strict=True)]
        assert difference["mean"] == pytest.approx(np.mean(each))
        ours, theirs = (
            np.stack(
                [read_answers(studied / run["run"] / "test_answers.safetensors")[1] for run in m["runs"]]
            )
            for m in (entry, content["methods"][0])
        )
        expected = paired_difference(ours, theirs)
        assert difference | {"p_holm": None} == expected
        assert (difference["seeds"], difference["images"]) == (2, 20)
    tested = [entry["difference"] for entry in content["methods"][1:] if entry["difference"]["p"] is not None]
    assert [each["p_holm"] for each in tested] == holm([each["p"] for each in tested])
    assert Image.open(studied / "attention.png").format == "PNG"


def answered(network: nn.Module, data: ImageData) -> torch.Tensor:
    assert isinstance(data.test, MemorySplit)
    with torch.no_grad():
        return network.eval()(Normalization(data.mean, data.std)(data.test.images)).argmax(1)


def test_every_answer_to_a_test_image_is_kept(studied: Path) -> None:
    data = tiny_data()
    assert data.test is not None
    theirs = answered(tiny_net(2), data)
    classes, right = read_answers(studied / "teacher_answers.safetensors")
    assert torch.equal(classes, theirs)
    for method in ("ce", "kd", "at"):
        folder = studied / method / "seed-1"
        classes, right = read_answers(folder / "test_answers.safetensors")
        assert torch.equal(classes, answered(eyeline.load(folder, TinyNet()), data))
        assert right.tolist() == (classes == data.test.labels).tolist()
        result = json.loads((folder / "result.json").read_text())
        assert result["test_accuracy"] == pytest.approx(right.mean())
        assert result["teacher_agreement"] == pytest.approx((classes == theirs).double().mean().item())


def test_a_study_without_answers_gets_them_when_it_goes_on(
    tmp_path: Path, studied: Path, capsys: Any
) -> None:
    shutil.copytree(studied, tmp_path / "s")
    for file in tmp_path.glob("s/*/seed-*/test_answers.safetensors"):
        file.unlink()
    for file in tmp_path.glob("s/*/seed-*/result.json"):
        kept = json.loads(file.read_text())
        del kept["teacher_agreement"]
        file.write_text(json.dumps(kept))
    run = study(tmp_path / "s", resume=True)
    assert capsys.readouterr().err.count("kept no answers to the test images") == 6
    assert run.result["methods"] == json.loads((studied / "study.json").read_text())["methods"]
    for file in studied.rglob("*_answers.safetensors"):
        assert (tmp_path / "s" / file.relative_to(studied)).read_bytes() == file.read_bytes()


def test_what_is_said_without_test_images_or_with_a_teacher_of_other_classes(tmp_path: Path) -> None:
    untested = study(tmp_path / "a", data=tiny_data(test=None), methods=["at"], seeds=1, epochs=1)
    assert not list((tmp_path / "a").rglob("*_answers.safetensors"))
    assert all("difference" not in entry for entry in untested.result["methods"])
    other = study(tmp_path / "b", teacher=tiny_net(2, classes=7), methods=["at"], seeds=1, epochs=1)
    assert [entry["runs"][0]["teacher_agreement"] for entry in other.result["methods"]] == [None, None]
    assert not (tmp_path / "b" / "teacher_answers.safetensors").exists()
    assert (tmp_path / "b" / "at" / "seed-0" / "test_answers.safetensors").exists()
    difference = other.result["methods"][1]["difference"]
    assert difference["mean"] is not None
    assert {difference[key] for key in ("low", "high", "p", "p_holm", "p_flips")} == {None}


def test_no_method_may_be_called_as_what_a_study_writes(studied: Path) -> None:
    others = {file.name for file in (*studied.iterdir(), *studied.glob("*/seed-*/*"))} - {"ce", "at", "kd"}
    assert len(others) > 8
    assert {name for name in others if not is_ours(name)} == set()


def test_a_figure_that_is_not_finite_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    def overflows(*given: Any) -> Evaluation:
        return Evaluation(0.5, float("inf"), torch.zeros(20, dtype=torch.int64))

    monkeypatch.setattr("eyeline.training.result.evaluate", overflows)
    run = study(tmp_path / "s", methods=["kd"], seeds=1, epochs=1)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    one = run.folder / "kd" / "seed-0"
    assert json.loads((one / "result.json").read_text())["test_loss"] is None
    assert run.result["teacher"]["test_loss"] is None
    assert run.result == json.loads((run.folder / "study.json").read_text())


def test_a_study_starts_every_method_from_the_same_weights(tmp_path: Path, monkeypatch: Any) -> None:
    started: dict[tuple[str, int], torch.Tensor] = {}
    fit = one_run.fit

    def recorded(distiller: Distiller, data: Any, settings: Settings, folder: Any, **options: Any) -> Any:
        start = torch.cat([p.detach().flatten().clone() for p in distiller.student.parameters()])
        started[(options["label"].partition(",")[0], settings.seed)] = start
        return fit(distiller, data, settings, folder, **options)

    monkeypatch.setattr("eyeline.training.run.fit", recorded)
    study(tmp_path / "s", epochs=1, seeds=[3, 8], methods={"soft": "kd", "look": {"at": {"weight": 10}}})
    assert set(started) == {(m, s) for m in ("ce", "soft", "look") for s in (3, 8)}
    for seed in (3, 8):
        assert torch.equal(started[("ce", seed)], started[("soft", seed)])
        assert torch.equal(started[("ce", seed)], started[("look", seed)])
    assert not torch.equal(started[("ce", 3)], started[("ce", 8)])


def test_a_study_goes_on_without_repeating(tmp_path: Path, studied: Path, monkeypatch: Any) -> None:
    class CutOff(BaseException):
        pass

    fit, done = one_run.fit, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done == 4:
            raise CutOff
        return fit(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("eyeline.training.run.fit", counted)
        with pytest.raises(CutOff):
            study(tmp_path / "s")
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/*/result.json")}
    assert len(finished) == 3
    assert not (tmp_path / "s" / "study.json").exists()
    study(tmp_path / "s", resume=True)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    ours, theirs = (json.loads((f / "study.json").read_text()) for f in (tmp_path / "s", studied))
    assert ours["methods"] == theirs["methods"]


def test_a_study_holds_its_folder_while_it_fills_its_memory_and_trains(
    tmp_path: Path, monkeypatch: Any
) -> None:
    held: list[str] = []

    def see(place: str) -> None:
        room, _, name = place.rpartition(".")
        work = getattr(import_module(room), name)

        def seen(*given: Any, **options: Any) -> Any:
            with pytest.raises(TimeoutError), locked(tmp_path / "s", 0):
                pass
            held.append(name)
            return work(*given, **options)

        monkeypatch.setattr(place, seen)

    for place in ("eyeline.training.filling.fill", "eyeline.training.run.fit", "eyeline.pages.write_page"):
        see(place)
    study(tmp_path / "s", memory=str(tmp_path / "s" / "memory"), methods=["kd"], seeds=1)
    assert held == ["fill", "fit", "fit", "write_page"]
    assert not list((tmp_path / "s").rglob(LOCK))


def test_a_study_takes_more_seeds_and_other_methods(tmp_path: Path, studied: Path) -> None:
    study(tmp_path / "s", seeds=1, methods=["kd"])
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/*/result.json")}
    more = study(tmp_path / "s", resume=True)  # two seeds, and another method
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert more.result["methods"] == json.loads((studied / "study.json").read_text())["methods"]
    fewer = study(tmp_path / "s", methods=["at"], resume=True)
    assert [entry["method"] for entry in fewer.result["methods"]] == ["ce", "at"]
    with pytest.raises(InputError, match=r"kd/seed-0 holds a run with another recipe \(method was"):
        study(tmp_path / "s", methods={"kd": {"kd": {"temperature": 9}}}, resume=True)


def test_a_study_goes_on_without_a_method_that_diverges(tmp_path: Path) -> None:
    bad = {"at": {"weight": 1e38}}
    with pytest.raises(TrainingStopped, match=r"not finite .*without this method, .* goes on with --resume"):
        study(tmp_path / "s", methods={"bad": bad, "kd": "kd"}, seeds=1)
    with pytest.raises(InputError, match="continue it with --resume, or, where it diverged, start anew"):
        eyeline.report(tmp_path / "s")
    run = study(tmp_path / "s", methods=["kd"], seeds=1, resume=True)
    assert [entry["method"] for entry in run.result["methods"]] == ["ce", "kd"]


def test_a_study_is_no_model(tmp_path: Path, studied: Path) -> None:
    images = tiny_split(2, 0).images
    for use in (
        lambda: eyeline.load(studied),
        lambda: eyeline.look(str(studied), images, str(tmp_path / "look.png")),
        lambda: eyeline.distill(tiny_net(1), str(studied), tiny_data(), str(tmp_path / "run"), **SHORT),
    ):
        with pytest.raises(InputError, match=rf"{studied} is a study; name one of its runs, as .*/at/seed-0"):
            use()


def test_a_study_of_networks_without_common_layers_has_no_picture(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(144, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1))

    run = study(tmp_path / "s", student=Flat, methods=["kd"], seeds=1, epochs=1)
    assert run.result["methods"][1]["difference"]["low"] is None
    assert not (tmp_path / "s" / "attention.png").exists()


def test_images_that_are_no_pictures(tmp_path: Path) -> None:
    def split(size: int) -> MemorySplit:
        plain = tiny_split(size, size)
        return MemorySplit(plain.images.repeat(1, 4, 1, 1), plain.labels)

    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        )

    parts = split(50), split(21), split(20)
    data = ImageData("four", ("a", "b", "c"), (0.25,) * 4, (0.2,) * 4, *parts, channels=4, size=(12, 12))
    run = study(tmp_path / "s", student=net, teacher=net(), data=data, seeds=1, epochs=1, layers="1")
    assert (tmp_path / "s" / "report.html").exists()
    assert not (tmp_path / "s" / "attention.png").exists()
    network = eyeline.load(run.folder / "at" / "seed-0", net())
    with pytest.raises(InputError, match=r"the network takes 4; expected uint8 tensors \[N, 4, H, W\]"):
        network.preprocess(Image.new("RGB", (12, 12)))  # type: ignore[operator]


def test_folders_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    study(Path("~/s"), methods="kd", seeds=1, epochs=1)
    assert {"study.json", "attention.png", "report.html"} <= {p.name for p in (tmp_path / "s").iterdir()}
    eyeline.look(tiny_net(1), tiny_split(2, 0).images, "~/look.png")
    assert (tmp_path / "look.png").exists()
    assert not (tmp_path / "~").exists()


def test_a_student_whose_layers_have_two_names(tmp_path: Path) -> None:
    class Twice(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(self.low, self.high)

    run = eyeline.train(Twice(), tiny_data(), str(tmp_path / "run"), **SHORT)
    again = run.load()
    for name, tensor in again.state_dict().items():
        assert torch.equal(
            tensor, again.state_dict()[name.replace("body.0", "low").replace("body.1", "high")]
        )


def test_a_teacher_that_was_trained_on_another_division(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tiny_split(120, 4)
    for index, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        place = tmp_path / "data" / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{index}.png")
    common = {**SHORT, "epochs": 1, "image_size": 12, "workers": 0, "batch_size": 16}
    data = f"folder:{tmp_path / 'data'}"
    teacher = eyeline.train("wrn_10_1", data, str(tmp_path / "teacher"), **common)
    (tmp_path / "data" / "a" / "bad.png").write_bytes(b"bad")
    common["skip_bad_images"] = True
    for name, options, said in (
        ("same", {}, False),
        ("seed", {"split_seed": 1}, True),
        ("fewer", {"train_size": 40}, False),
    ):
        capsys.readouterr()
        eyeline.distill("wrn_10_1", str(teacher.folder), data, str(tmp_path / name), **{**common, **options})
        heard = capsys.readouterr().err
        assert ("was trained beside other validation and test images" in heard) == said, name
        assert "1 unreadable image left out: a/bad.png" in heard
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["data"]["skipped"] == ["a/bad.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds are 0; expected"),
        ({"seed": 5}, r"seed is 5; a study has several, expected seeds \(--seeds 5,6\)"),
        ({"seeds": [1, 1]}, "expected a number of at least 1, or different seeds"),
        ({"methods": ["kd", "kd"]}, "name one method twice"),
        ({"methods": ["kdd"]}, "unknown loss 'kdd'; did you mean 'kd'"),
        ({"methods": "kdd"}, "unknown loss 'kdd'; did you mean 'kd'"),
        ({"methods": {"ce": {"ce": {"weight": 0.5}}}}, "'ce' is the student alone; give .* another name"),
        ({"methods": {"a b": "kd", "a/b": "at"}}, "have names that make one folder"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study(tmp_path / "s", **change)
    assert not (tmp_path / "s").exists()


def test_the_page_of_a_study(studied: Path) -> None:
    page = eyeline.report(studied)  # also the name of a package, which is imported by now
    assert page == studied / "report.html"
    assert "</html>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("full", [False, True])
def test_the_demo_has_a_memory_in_its_study(tmp_path: Path, monkeypatch: Any, full: bool) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("eyeline.verbs.demo.train", lambda *arguments, **options: None)
    monkeypatch.setattr("eyeline.verbs.demo.study", lambda **options: given.update(options))
    eyeline.demo(str(tmp_path / "d"), full=full)
    assert Path(given["memory"]) == Path(given["out"]) / "memory"


# --- look ---------------------------------------------------------------------------------------------------


def test_look(tmp_path: Path, teacher: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.RandomState(i).randint(0, 255, (50, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    tensor = torch.randint(0, 255, (3, 1, 28, 28), dtype=torch.uint8)
    sources = ["fashion_mnist_sample", str(tmp_path / "images"), str(tmp_path / "images" / "1.png"), tensor]
    areas = []
    for number, images in enumerate(sources):
        out = eyeline.look(
            str(teacher), images, str(tmp_path / "new" / f"{number}.png"), count=2, maps=["sum^2"]
        )
        picture = Image.open(out)
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture))) > 50
        areas.append(picture.width * picture.height)
    assert min(areas[0], areas[1], areas[3]) > areas[2]  # two images, one
    monkeypatch.chdir(tmp_path)
    assert main(["look", str(teacher), "images", "--maps", "sum^1,max^4", "--layers", "group2"]) == 0
    assert Image.open("look.png").format == "PNG"
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    assert main(["look", str(teacher), "images"]) == 2
    assert "0.png cannot be read" in capsys.readouterr().err
    assert main(["look", str(teacher), "images", "--skip_bad_images"]) == 0
    assert "1 unreadable image left out: images/0.png" in capsys.readouterr().err


def test_look_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = tiny_net(1).train()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    eyeline.look(network, tiny_split(3, 0).images, str(tmp_path / "a.png"), layers=["low", "high"])
    assert network.training
    assert not network.low._forward_hooks
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": ["sum^0.5"]}, r"map function 'sum\^0\.5'; expected sum\^P or max\^P"),
        ({"count": 0}, "count is 0; expected"),
        ({"out": "look.txt"}, "out is look.txt; the picture is a PNG"),
        ({"images": "nowhere"}, "unknown image file, folder of images or data set 'nowhere'"),
        ({"layers": ["lo"]}, "unknown layer"),
        ({"model": 3}, "model is 3; expected a name"),
        ({"images": torch.zeros(1, 3, 8, 8)}, "expected uint8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_look_at_what_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {"model": tiny_net(1), "images": tiny_split(2, 0).images, "out": str(tmp_path / "a.png")}
    with pytest.raises(InputError, match=message):
        eyeline.look(**{**given, **change})
    assert not (tmp_path / "a.png").exists()


# --- several processes --------------------------------------------------------------------------------------


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Through the command line; batch norm sees the half of a batch that each process has."""
    words = [f"--{name}={value}" for name, value in {**SAMPLE, "epochs": 2, "precision": "float32"}.items()]
    command = [sys.executable, "-m", "eyeline", "train", "wrn_10_1", "fashion_mnist_sample", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--devices=2", f"--out={tmp_path / 'two'}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    options: dict[str, Any] = {**SAMPLE, "epochs": 2, "precision": "float32"}
    one = eyeline.train("wrn_10_1", "fashion_mnist_sample", str(tmp_path / "one"), **options)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["train_loss"] == pytest.approx(one.result["train_loss"], rel=0.03)
    assert two["train_loss"] != one.result["train_loss"]
    assert not list((tmp_path / "two").glob("*.ckpt"))


def test_two_processes_read_one_memory(tmp_path: Path) -> None:
    """Each the rows of its own images: the losses are those of the teacher at hand."""
    settings: dict[str, Any] = {**SAMPLE, "precision": "float32", "memory_precision": "float32"}
    pair = ("wrn_10_1", "wrn_16_2.fashion_mnist", "fashion_mnist_sample")
    eyeline.remember(*pair, str(tmp_path / "m"), **settings)
    words = [f"--{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    last = []
    for options in ([], [f"--memory={tmp_path / 'm'}"]):
        out = tmp_path / f"run{len(last)}"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "eyeline",
                "distill",
                *pair,
                *words,
                *options,
                "--devices=2",
                f"--out={out}",
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        last.append(json.loads((out / "result.json").read_text()))
        (row,) = csv.DictReader((out / "metrics.csv").read_text().splitlines())
        last[-1] |= {name: float(row[name]) for name in ("kd", "at")}
    for name in ("train_loss", "kd", "at"):
        assert last[1][name] == pytest.approx(last[0][name], rel=1e-4)


IDLE = """
import sys
sys.path.insert(0, {tests!r})
import eyeline, torch, tiny
from torch import nn

class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Conv2d(1, 6, 3, padding=1)
        self.high = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head, self.idle = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.high(self.low(x).relu()).relu().mean((2, 3)))

torch.manual_seed(0)
options = {{**tiny.SETTINGS, "precision": "float32", "epochs": 3, "learning_rate": 0.01}}
for method in ("act+kd", "ce"):
    eyeline.distill(
        Idle(), tiny.tiny_net(2), tiny.tiny_data(48), {out!r} + "/" + method, method=method,
        layers=["low", "high"], devices=int(sys.argv[1]), **options
    )
"""


def test_two_processes_train_a_student_of_which_a_part_has_no_gradient(tmp_path: Path) -> None:
    """``act`` has learnable parts, and no weight in the last epoch."""
    runs = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        script = tmp_path / f"train{devices}.py"
        script.write_text(IDLE.format(tests=str(Path(__file__).parent), out=str(out)))
        done = subprocess.run(
            [sys.executable, str(script), str(devices)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        runs.append([load_file(out / method / "student.safetensors") for method in ("act+kd", "ce")])
    for one, two in zip(*runs, strict=True):
        for name, weights in one.items():
            torch.testing.assert_close(two[name], weights, rtol=1e-2, atol=1e-4)
        assert torch.equal(two["idle.weight"], one["idle.weight"])


# --- what cannot be meant -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"..": "at"}, r"called '\.\.'; expected a name that makes a folder"),
        ({"é": "at"}, "expected a name that makes a folder"),
        ({"memory": "at"}, "expected a name that makes a folder, and not one of eyeline's own"),
        ({"report.html": "at"}, "called 'report.html'; expected .* not one of eyeline's own"),
        ({"Study.JSON": "at"}, "not one of eyeline's own"),
        ({"teacher": "at"}, "not one of eyeline's own"),
        ({".study.json.17.part": "at"}, "not one of eyeline's own"),
        ({1: "at"}, "called 1; expected a name"),
        ({"ce": "at"}, "'ce' is the student alone"),
    ],
)
def test_names_of_methods_that_make_no_folder_of_their_own(tmp_path: Path, methods: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        study(tmp_path / "study", methods=methods)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["kd", "sym", "cat"])
def test_layers_that_do_not_exist_are_refused_by_methods_that_read_none(tmp_path: Path, method: str) -> None:
    with pytest.raises(InputError, match="unknown layer of TinyNet 'lo'; did you mean 'low'"):
        eyeline.distill(
            tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), method=method, layers="lo", **SHORT
        )
    assert not list(tmp_path.iterdir())


def test_weights_beside_a_network_that_has_its_own(tmp_path: Path, teacher: Path, small: ImageData) -> None:
    for given in (str(teacher), tiny_net(2)):
        with pytest.raises(InputError, match="teacher_weights is for a teacher given by name"):
            eyeline.distill(
                "wrn_10_1", given, small, str(tmp_path / "run"), teacher_weights="other.safetensors", **SHORT
            )
    with pytest.raises(InputError, match="weights is for a model given by name"):
        eyeline.look(str(teacher), small.test.images[:1], str(tmp_path / "l.png"), weights="o.safetensors")  # type: ignore[union-attr]
    assert not list(tmp_path.iterdir())


def test_a_student_with_nothing_to_train(tmp_path: Path) -> None:
    frozen = tiny_net(1).requires_grad_(False)
    with pytest.raises(InputError, match="TinyNet has no parameter that requires a gradient"):
        eyeline.distill(frozen, tiny_net(2), tiny_data(), str(tmp_path / "run"), **SHORT)
    with pytest.raises(InputError, match="nothing to train"):
        eyeline.train(frozen, tiny_data(), str(tmp_path / "run"), **SHORT)


def test_a_teacher_that_cannot_take_the_images_is_named(tmp_path: Path) -> None:
    cases = ((nn.Conv2d(3, 4, 3), "it takes 3 channels"), (nn.Conv2d(1, 4, 13), "Calculated padded .*"))
    for first, why in cases:
        teacher = nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        with pytest.raises(
            InputError, match=rf"Sequential .*are 1x12x12 \({why}\); train one on this data: eyeline"
        ):
            eyeline.distill(tiny_net(1), teacher, tiny_data(), str(tmp_path / "run"), **SHORT)


@pytest.mark.parametrize("verb", ["train", "distill", "study"])
def test_a_taken_folder_is_refused_before_any_work(
    tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    eyeline.train(tiny_net(1), tiny_data(), out, **SHORT)
    for asked_later in ("experiment.resolve.named_student", "experiment.resolve.named_teacher"):
        monkeypatch.setattr(f"eyeline.{asked_later}", None)
    monkeypatch.setattr("eyeline.training.remembering.planned_memory", None)
    start = {
        "train": lambda **how: eyeline.train(tiny_net(1), tiny_data(), out, **SHORT, **how),
        "distill": lambda **how: eyeline.distill(
            tiny_net(1), tiny_net(2), tiny_data(), out, memory=str(tmp_path / "memory"), **SHORT, **how
        ),
        "study": lambda **how: eyeline.study(
            tiny_net(1), tiny_net(2), tiny_data(), out, memory=str(tmp_path / "memory"), **SHORT, **how
        ),
    }[verb]
    with pytest.raises(InputError, match="holds a run already"):
        start()
    with pytest.raises(InputError, match="not both"):
        start(resume=True, overwrite=True)


def test_a_run_that_ends_in_nan_is_not_finished(tmp_path: Path) -> None:
    data = dataclasses.replace(tiny_data(), train=tiny_split(8, 1))  # one step
    with pytest.raises(eyeline.errors.TrainingStopped, match="not finite after"):  # type: ignore[attr-defined]
        eyeline.distill(
            tiny_net(1),
            tiny_net(2),
            data,
            str(tmp_path / "run"),
            method="at",
            **{**SHORT, "epochs": 1, "learning_rate": 1e30},
        )
    assert not (tmp_path / "run" / "result.json").exists()


def test_look_leaves_the_modes_of_a_network(tmp_path: Path) -> None:
    network = tiny_net(1).train()
    network.low[1].eval()
    before = [module.training for module in network.modules()]
    eyeline.look(network, torch.zeros(1, 1, 224, 224, dtype=torch.uint8), str(tmp_path / "look.png"))
    assert [module.training for module in network.modules()] == before


@pytest.mark.parametrize("name", ["learning_rate", "memory_budget", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "0.1"])
def test_settings_that_are_no_finite_numbers(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is .*; expected a (finite )?number"):
        Settings.of(**{name: value})


def test_a_run_of_a_python_object_loads_its_network(tmp_path: Path) -> None:
    run = eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), **SHORT)
    network = run.load()
    assert isinstance(network, TinyNet)
    assert network.classes == ("a", "b", "c")  # type: ignore[attr-defined]
    again = eyeline.load(run.folder, model=TinyNet())
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match=r"expected a network, as MyNet\(\), not the class"):
        eyeline.load(run.folder, model=TinyNet)  # type: ignore[arg-type]
    first = (run.folder / "recipe.yaml").read_text().splitlines()[0]
    assert first == "# eyeline distill of Python objects: repeat it in Python, with the same ones"


def test_an_unknown_tag_of_a_name() -> None:
    with pytest.raises(InputError, match=r"wrn_16_2\.fashion_mnst'; did you mean 'wrn_16_2\.fashion_mnist'"):
        eyeline.create_model("wrn_16_2.fashion_mnst")


def test_the_teacher_of_the_package_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    teacher = eyeline.load("wrn_16_2.fashion_mnist")
    data = load_data("fashion_mnist_sample")
    assert teacher.classes == data.classes
    assert (teacher.preprocess.mean, teacher.preprocess.std) == (data.mean, data.std)
    assert teacher.preprocess.size == (28, 28)
    assert data.test is not None
    with torch.no_grad():
        logits = teacher(teacher.preprocess(data.test.images[:500]))
    assert (logits.argmax(1) == data.test.labels[:500]).float().mean() > 0.9


def test_look_at_random_weights_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eyeline.look("wrn_10_1", "fashion_mnist_sample", str(tmp_path / "a.png"), count=1)
    assert "wrn_10_1 has random weights" in capsys.readouterr().err
    eyeline.look("wrn_16_2.fashion_mnist", "fashion_mnist_sample", str(tmp_path / "b.png"), count=1)
    assert "random" not in capsys.readouterr().err


def test_look_at_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image file, folder .*; did you mean 'fashion_mnist'"):
        eyeline.look("wrn_16_2.fashion_mnist", "fashion_mnis", str(tmp_path / "a.png"))
