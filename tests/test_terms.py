"""Terms by names of the user's: each sees its own layers, and is what a method of it alone would be."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import eyeline
from eyeline import functional
from eyeline.cli import main
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.kinds import parse_yaml
from eyeline.losses import LOSSES, Loss
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.objective import Objective, method_name, resolve_method
from eyeline.runs.folder import RunFolder
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

TWO = {"low": {"loss": "at", "exponent": 1, "weight": 500}, "high": {"loss": "at"}, "kd": {}}
AT = {"weight": 1000.0, "schedule": "linear", "exponent": 2.0, "reduce": "sum", "reduction": "mean_square"}
BY_LAYER = {
    "low": {"loss": "at", "layers": ["low"], "exponent": 1, "weight": 500},
    "high": {"loss": "at", "layers": "high"},
    "kd": {},
}
LOOKING: list[dict[str, Any]] = [
    {"loss": "at"},
    {"loss": "act"},
    {"loss": "hint"},
    {"loss": "sp"},
    {"loss": "aft"},
    {"loss": "cat", "stages": True},
    {"loss": "gat", "where": "features"},
    {"loss": "gat", "where": "features", "statistics": "running"},
]
"""A way of each loss to look at layers."""


def nets(**options: Any) -> tuple[TinyNet, TinyNet]:
    return tiny_net(1, dropout=0.0), tiny_net(2, dropout=0.0, **options)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(size, 1, 12, 12, generator=generator), torch.arange(size) % 3


# --- names ------------------------------------------------------------------------------------------------


def test_a_term_says_which_loss_it_is() -> None:
    resolved = resolve_method(TWO)
    assert json.dumps(resolved) == json.dumps(
        {
            "ce": {"weight": 0.1, "schedule": "constant"},
            "low": {"loss": "at", **AT, "weight": 500, "exponent": 1},
            "high": {"loss": "at", **AT},
            "kd": {"weight": 0.9, "schedule": "constant", "temperature": 4.0},
        }
    )
    assert json.dumps(resolve_method(resolved)) == json.dumps(resolved)
    assert method_name(TWO) == "low+high+kd"
    assert method_name({name: TWO[name] for name in ("kd", "high", "low")}) == "high+low+kd"
    assert resolve_method({"at": {"loss": "at"}, "kd": None}) == resolve_method("at+kd")
    placed = resolve_method({"at": {"layers": "a, b:c"}})["at"]
    assert next(iter(placed.items())) == ("layers", ["a", "b:c"])
    assert resolve_method({"at": {"layers": "auto"}})["at"]["layers"] == "auto"


def test_defaults_go_by_the_loss() -> None:
    soft = {"soft": {"loss": "kd", "weight": 0.3}, "softer": {"loss": "kd", "weight": 0.5, "temperature": 8}}
    resolved = resolve_method({**soft, "look": {"loss": "at"}})
    assert list(resolved) == ["ce", "look", "soft", "softer"]
    assert resolved["ce"]["weight"] == 0.2
    assert resolved["look"]["schedule"] == "linear"
    soft["soft"]["weight"] = 0.6
    with pytest.raises(InputError, match=r"weight of 'soft' and 'softer' is 1\.1; expected at most 1, or"):
        resolve_method(soft)
    assert resolve_method({**soft, "ce": {"weight": 1}})["ce"]["weight"] == 1
    balanced = {name: {"loss": "at", "schedule": "loss_rate"} for name in ("one", "two")}
    objective = Objective(balanced)
    objective.end_epoch({"ce": 1.0, "one": 1.0, "two": 1.0})
    objective.end_epoch({"ce": 0.001, "one": 1.0, "two": 1.0})
    objective.set_progress(2, 3)
    assert objective.factors.tolist() == pytest.approx([0.1, 1450, 1450])  # ce has 0.1 at least


def test_the_method_of_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    block = page.partition("layers by term\n")[2].partition("```yaml\n")[2].partition("```")[0]
    resolved = resolve_method(parse_yaml(block)["method"])
    assert {name: term.get("layers") for name, term in resolved.items()} == {
        "ce": None, "low": ["layer1"], "high": ["layer2", "layer3"], "kd": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"low": {"loss": "att"}}, "unknown loss 'att'; did you mean 'at'"),
        ({"low": {"loss": ["at"]}}, r"unknown loss \['at'\]"),
        ({"low": {"exponent": 1}}, "unknown loss 'low'"),
        ({"low": {"loss": "at", "temperature": 3}}, "unknown option of loss 'at' 'temperature'"),
        ({"low": {"loss": "at", "reduce": "maks"}}, "unknown reduce 'maks'; did you mean 'max'"),
        (
            {"kd": {"loss": "at"}},
            "term 'kd' is of loss 'at'; expected another name, as that is a loss itself",
        ),
        ({"hard": {"loss": "ce"}}, "term 'hard' is of loss 'ce'; expected the name 'ce'"),
        *(
            ({name: {"loss": "at"}}, "a term is called")
            for name in (
                "",
                "a.b",
                "a+b",
                "a b",
                "1st",
                3,
                "x" * 41,
                "loss",
                "train_accuracy",
                "step",
                "total",
            )
        ),
        *(
            ({name: {"loss": "at"}}, "as a part of PyTorch's modules")
            for name in ("keys", "training", "float")
        ),
        ({"at": {"layers": []}}, r"layers of term 'at' are \[\]; expected 'auto', or names"),
        ({"at": {"layers": "low,"}}, "layers of term 'at' are 'low,'"),
        ({"at": {"layers": 3}}, "layers of term 'at' are 3"),
        ({"kd": {"layers": "low"}}, "term 'kd' looks at no layers; leave layers out"),
        ({"gat": {"layers": "low"}}, "term 'gat' looks at no layers"),
        ({"at": {"layers": "lo"}}, "unknown layer of TinyNet 'lo'; did you mean 'low'"),
        ({"at": {"layers": "low:hig"}}, "unknown layer of TinyNet 'hig'; did you mean 'high'"),
        ({"at": {"layers": ["low", "low:high"]}}, "name one layer twice"),
        (
            {"one": {"loss": "hint", "layers": "low", "layer": 1}},
            "layer of loss 'hint' is 1; expected 0 to 0",
        ),
    ],
    ids=str,
)
def test_mistakes(method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distiller(*nets(), method)


# --- layers ------------------------------------------------------------------------------------------------


def test_terms_are_those_of_the_functions() -> None:
    student, teacher = nets(width=8)
    images, labels = batch()
    with Distiller(student, teacher, BY_LAYER) as distiller:
        assert distiller.pairs == [("low", "low"), ("high", "high")]
        assert distiller.layers == {"low": [("low", "low")], "high": [("high", "high")]}
        terms = distiller(images, labels)
    ours, theirs = student.low(images), teacher.low(images)
    expected = {
        "ce": F.cross_entropy(terms.logits, labels),
        "low": functional.attention_transfer_loss(ours, theirs, exponent=1),
        "high": functional.attention_transfer_loss(student.high(ours), teacher.high(theirs)),
        "kd": functional.knowledge_distillation_loss(terms.logits, teacher(images)),
    }
    torch.testing.assert_close(dict(terms), expected)
    total = 0.1 * expected["ce"] + 500 * expected["low"] + 1000 * expected["high"] + 0.9 * expected["kd"]
    torch.testing.assert_close(terms.total, total)


@pytest.mark.parametrize("looking", LOOKING, ids=str)
def test_each_is_what_it_is_alone(looking: dict[str, Any]) -> None:
    parameters = {k: v for k, v in looking.items() if k != "loss"}
    layers: dict[str, Any] = {"one": ["high"], "two": ["high", "low"], "three": None, "four": "auto"}
    method: dict[str, Any] = {
        name: {**looking, **({} if own is None else {"layers": own})} for name, own in layers.items()
    }
    images, labels = batch()
    together = Distiller(*nets(), method, layers=["low"])
    assert together.pairs == [("high", "high"), ("low", "low")]
    alone = {}
    for name, own in layers.items():
        distiller = Distiller(*nets(), {looking["loss"]: parameters}, own or ["low"])
        (loss,) = (loss for term, loss in distiller.objective.losses.items() if term != "ce")
        loss.load_state_dict(together.objective.losses[name].state_dict())
        alone[name] = distiller(images, labels)[looking["loss"]]
        close(together.target(images, labels)[name], distiller.target(images, labels)[looking["loss"]])
    terms = together(images, labels)
    assert len({float(term) for term in alone.values()}) > 1
    torch.testing.assert_close({name: terms[name] for name in layers}, alone)
    targets = together.target(images, labels)
    assert together.observe_teacher is not None
    together.observe_teacher.close()  # it is not asked for what is given
    again = copy.deepcopy(together)(images, labels, targets)
    assert again.keys() == terms.keys()


class Block(nn.Module):
    """Its activation is a function, so what comes before cannot be seen."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def half_hidden(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = tiny_net(seed, dropout=0.0)
    net.low = nn.Sequential(Block(1, 6), Block(6, 6))
    return net


def test_pre_activations_are_asked_of_the_layers_of_their_terms() -> None:
    with pytest.raises(InputError, match="does not end in an activation module"):
        Distiller(half_hidden(1), half_hidden(2), "at+aft", ["low", "high"], (1, 12, 12))
    method = {"at": {"layers": ["low", "high"]}, "aft": {"layers": "high"}}
    together = Distiller(half_hidden(1), half_hidden(2), method, input_shape=(1, 12, 12))
    alone = Distiller(half_hidden(1), half_hidden(2), "aft", "high", (1, 12, 12))
    alone.objective.losses["aft"].load_state_dict(together.objective.losses["aft"].state_dict())
    torch.testing.assert_close(together(*batch())["aft"], alone(*batch())["aft"])
    assert together.observe_student.activated == ("high",)


def test_other_layers_are_not_looked_for_where_no_term_needs_them() -> None:
    student, _ = nets()
    conv = nn.Conv2d(1, 4, 3, padding=1)  # a stem alone: no layer is found
    teacher = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for method in ("at", {"at": {}, "sp": {"layers": "low:0"}}):
        with pytest.raises(InputError, match="no layer of Sequential answers"):
            Distiller(student, teacher, method, input_shape=(1, 12, 12))
    distiller = Distiller(student, teacher, {"at": {"layers": "low:0"}}, input_shape=(1, 12, 12))
    assert distiller.pairs == [("low", "0")]


def test_what_a_loss_is_set_up_with() -> None:
    class Seen(Loss):
        name = "seen"
        needs = frozenset({"features"})
        needs_teacher = False

        def setup(self, student: Any, teacher: Any) -> None:
            self.shown = student(torch.zeros(2, 1, 12, 12)).features
            self.layers = [layer.name for layer in student.layers]
            assert teacher is None

        def forward(self, student: Any, target: Any, labels: Tensor) -> Tensor:
            return torch.stack([feature.mean() for feature in student.features]).sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "seen", Seen)
        method = {"all": {"loss": "seen"}, "one": {"loss": "seen", "layers": "high"}}
        student, _ = nets()
        with Distiller(student, None, method, ["low", "high"], (1, 12, 12)) as distiller:
            found = {name: distiller.objective.losses[name] for name in method}
            assert found["all"].layers == ["low", "high"]
            assert found["one"].layers == ["high"]
            assert [tuple(f.shape) for f in found["one"].shown] == [(2, 12, 6, 6)]
            images, labels = batch()
            terms = distiller(images, labels)
            assert distiller.pairs == []
        low = student.low(images)
        torch.testing.assert_close(terms["one"], student.high(low).mean())
        torch.testing.assert_close(terms["all"], low.mean() + student.high(low).mean())


# --- the memory --------------------------------------------------------------------------------------------


def test_terms_with_one_target_share_its_name() -> None:
    method = {
        "one": {"loss": "at", "layers": "low", "weight": 5},
        "two": {"loss": "at", "layers": ["low"], "reduction": "norm"},
        "other": {"loss": "at", "layers": "high"},
        "at": {},
    }
    names = target_names(Distiller(*nets(), method, ["low"]))
    assert names["one"] == names["two"] == names["at"]
    assert names["other"] != names["one"]
    assert names["one"] == target_names(Distiller(*nets(), "at", ["low"]))["at"]
    assert names["other"] == target_names(Distiller(*nets(), "at", ["high"]))["at"]


def test_one_teacher_of_methods_at_other_layers() -> None:
    student, teacher = nets()
    methods: list[Any] = [{"a": {"loss": "at", "layers": "low"}}, {"at": {}, "aft": {"layers": "high"}}, "kd"]
    methods.append({"b": {"loss": "act", "layers": ["high", "low"]}})
    distillers = [Distiller(student, teacher, method, ["high"]) for method in methods]
    images, labels = batch()
    with SharedTeacher(distillers) as shared:
        found = shared.targets(images, labels, shared.losses)
    assert len(found) == 4
    for distiller in distillers:
        targets = distiller.target(images, labels)
        for term, name in target_names(distiller).items():
            close(found[name], targets[term])


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(dict(one), dict(other))


# --- whole runs --------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_run_with_a_memory_its_page_and_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {**BY_LAYER, "again": {"loss": "at", "layers": ["low"], "exponent": 1, "schedule": "constant"}}
    settings: dict[str, Any] = {**SETTINGS, "epochs": 2, "memory": str(tmp_path / "m"), "method": method}
    settings["memory_precision"] = "float32"
    run = eyeline.distill(*nets(), tiny_data(), out=str(tmp_path / "run"), **settings)
    assert run.result["method"] == "low+high+again+kd"
    assert run.result["layers"] == [["low", "low"], ["high", "high"]]
    assert run.result["attention_loss"] > 0
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    terms = ["ce", "low", "high", "again", "kd"]
    assert [name for name in terms if rows[0][name]] == terms
    assert rows[0]["low"] == rows[0]["again"]
    assert [name for name in terms if rows[1][name]] == ["ce", "again", "kd"]  # the others fell to 0
    effects = json.loads((run.folder / "doctor.json").read_text())["terms"]
    assert [effect["name"] for effect in effects] == terms
    assert len(list((tmp_path / "m").glob("at-*"))) == 2
    page = eyeline.report(run.folder).read_text(encoding="utf-8")
    assert "low + high + again + KD" in page
    assert "again loss" in page

    save, left = RunFolder.save_checkpoint, 2

    def stopped(self: RunFolder, state: Any) -> None:
        nonlocal left
        save(self, state)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stopped)
        with pytest.raises(KeyboardInterrupt):
            eyeline.distill(*nets(), tiny_data(), out=str(tmp_path / "cut"), **settings)
    cut = eyeline.distill(*nets(), tiny_data(), out=str(tmp_path / "cut"), **settings, resume=True)
    assert (cut.folder / "metrics.csv").exists()
    one, other = (load_file(each / "student.safetensors") for each in (run.folder, cut.folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(InputError, match="method"):
        eyeline.distill(
            *nets(), tiny_data(), out=str(tmp_path / "cut"), **{**settings, "method": "at+kd"}, resume=True
        )


@pytest.mark.whole
def test_from_the_command_line_and_a_recipe(
    tmp_path: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--epochs",
        "1",
        "--batch_size",
        "20",
        "--accelerator",
        "cpu",
        "--image_size",
        "12",
        "--workers",
        "0",
    ]
    teacher, out = str(tmp_path / "teacher"), tmp_path / "run"
    assert main(["train", "wrn_10_1", tiny_folder, "--out", teacher, *common]) == 0
    method = "{low: {loss: at, layers: [group1], weight: 9}, high: {loss: at, layers: [group2, 'group3']}}"
    words = ["distill", "wrn_10_1", teacher, tiny_folder, "--method", method, *common]
    assert main([*words, "--out", str(out)]) == 0, capsys.readouterr().err
    recipe = str(out / "recipe.yaml")
    assert main(["distill", "--config", recipe, "--out", str(tmp_path / "again")]) == 0
    weights = [load_file(folder / "student.safetensors") for folder in (out, tmp_path / "again")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    result = json.loads((out / "result.json").read_text())
    assert result["method"] == "low+high"
    assert result["layers"] == [[f"group{i}", f"group{i}"] for i in (1, 2, 3)]
    capsys.readouterr()
    assert main([*words[:5], "{low: {loss: at, layers: [group4]}}", *common]) == 2
    assert "unknown layer of WideResNet 'group4'" in capsys.readouterr().err
