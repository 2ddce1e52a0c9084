"""What a loss does in the first step: told exactly, and with nothing moved."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import eyeline
from eyeline import Distiller, InputError
from eyeline.cli import main
from eyeline.device import Device
from eyeline.doctor import check_effects, examine, idle_parameters, warnings
from eyeline.runs.folder import RunFolder
from eyeline.runs.run import Run
from eyeline.training.streams import training_stream
from networks import Plain
from tiny import SETTINGS, resolved, tiny_data, tiny_net

SHAPE = (3, 16, 16)
METHODS: list[Any] = [
    "at+kd",
    {"gat": {"where": "features", "compare": "map"}, "cam": {}, "act": {}},
    {"sym": {"statistics": "running"}, "aft": {}, "grad_reg": {}},
    {"cat": {"stages": True}, "hint": {}, "sp": {}},
]


def make(method: Any, student: nn.Module | None = None, layers: Any = "auto") -> Distiller:
    torch.manual_seed(0)
    teacher = Plain(widths=(8, 10, 12))
    return Distiller(student or Plain(dropout=0.0), teacher, method, layers, SHAPE)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, *SHAPE, generator=generator), torch.arange(size) % 5


@pytest.mark.parametrize("method", METHODS, ids=["at+kd", "gat+cam+act", "sym+aft+grad_reg", "cat+hint+sp"])
def test_gradients_are_those_of_each_loss_alone(method: Any) -> None:
    distiller = make(method)
    effects = examine(distiller, *batch())
    assert [effect.name for effect in effects] == list(distiller.objective.method)
    norms = []
    for effect in effects:
        alone = copy.deepcopy(distiller).train()
        alone.objective.active = [effect.name]
        terms = alone(*batch())
        terms.total.backward()
        flat = [p.grad.flatten() for p in alone.student.parameters() if p.grad is not None]
        norms.append(float(torch.cat(flat).norm()))
        assert effect.value == pytest.approx(float(terms[effect.name]), rel=1e-4)
        assert effect.weight == pytest.approx(distiller.objective.method[effect.name].weight.value)
        assert effect.gradient == pytest.approx(norms[-1], rel=1e-3)
        assert effect.reached
        assert effect.finite
        assert effect.constant == ()
    assert [effect.share for effect in effects] == pytest.approx([n / sum(norms) for n in norms], rel=1e-3)
    assert sum(effect.share for effect in effects) == pytest.approx(1)


@pytest.mark.parametrize("look", [examine, idle_parameters])
def test_everything_stays_as_it_was(look: Any) -> None:
    distiller = make({"at": {}, "hint": {}, "grad_reg": {}}, Plain(dropout=0.5))
    student = distiller.student
    student.register_buffer("hidden", torch.zeros(2), persistent=False)
    hook = student.register_forward_pre_hook(lambda m, _: setattr(m, "hidden", m.hidden + 1))
    student.stage2.eval()  # type: ignore[operator, union-attr]
    kept = torch.ones_like(student.fc.weight)  # type: ignore[arg-type, union-attr]
    student.fc.weight.grad = kept  # type: ignore[union-attr]
    state = {n: t.clone() for n, t in {**distiller.state_dict(), **dict(distiller.named_buffers())}.items()}
    modes = [module.training for module in distiller.modules()]
    random = torch.get_rng_state()
    look(distiller, *batch())
    hook.remove()
    now = {**distiller.state_dict(), **dict(distiller.named_buffers())}
    assert all(torch.equal(tensor, state[name]) for name, tensor in now.items())
    assert [module.training for module in distiller.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert student.fc.weight.grad is kept  # type: ignore[union-attr]
    assert torch.equal(kept, torch.ones_like(kept))
    assert sum(parameter.grad is not None for parameter in distiller.parameters()) == 1


def test_a_loss_of_weight_0_is_not_looked_at() -> None:
    distiller = make({"at": {"schedule": "linear"}, "kd": {"weight": 0}})
    assert [effect.name for effect in examine(distiller, *batch())] == ["ce", "at"]
    distiller.set_progress(4, 5)
    assert [effect.name for effect in examine(distiller, *batch())] == ["ce"]


# --- what teaches nothing -----------------------------------------------------------------------------------


class Blind(Plain):
    """Its first stage has no gradient."""

    def __init__(self, how: str) -> None:
        super().__init__(dropout=0.0)
        self.how = how
        if how == "frozen":
            self.conv.requires_grad_(False)
            self.stage1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.stage1(self.conv(x))
        elif self.how.startswith("checkpoint"):
            # an image that requires a gradient, as reentrant checkpointing needs one
            x = checkpoint(
                lambda x: self.stage1(self.conv(x)) + 0,
                x.detach().requires_grad_(),
                use_reentrant=self.how == "checkpoint, reentrant",
            )
        else:
            x = self.stage1(self.conv(x))
        return self.fc(self.stage3(self.stage2(x)).mean((2, 3)))


@pytest.mark.parametrize("how", ["frozen", "no_grad", "checkpoint, reentrant"])
@pytest.mark.parametrize("method", ["at", "hint", "act", "aft"])
def test_a_loss_that_reaches_no_parameter_is_refused(how: str, method: str) -> None:
    options = {"layer": 0} if method == "hint" else {}
    effects = examine(make({method: options}, Blind(how), "stage1"), *batch())
    assert [effect.reached for effect in effects] == [True, False]
    with pytest.raises(
        InputError,
        match=rf"loss '{method}' changes no parameter of the student: the layers stage1 have no gradient "
        r"\(frozen, under torch\.no_grad\(\), or inside checkpointing with use_reentrant=True\)",
    ):
        check_effects(effects)
    # where it looks at others as well it learns from those
    effects = examine(make({method: {}}, Blind(how), "stage1,stage3"), *batch())
    check_effects(effects)
    blind = [line for line in warnings(effects) if "teaches nothing at stage1 of the student" in line]
    assert len(blind) == (0 if method == "hint" else 1)  # hint looks at one


@pytest.mark.parametrize("how", ["as usual", "checkpoint"])
def test_a_loss_that_reaches_some_parameter_is_not(how: str) -> None:
    effects = examine(make("at", Blind(how), "stage1"), *batch())
    check_effects(effects)
    assert not any(effect.constant for effect in effects)


def test_logits_without_a_gradient() -> None:
    class Still(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    effects = examine(make("at", Still(dropout=0.0)), *batch())
    with pytest.raises(InputError, match="loss 'ce' changes no parameter of the student: what it looks at"):
        check_effects(effects)


def test_idle_parameters_are_named() -> None:
    student = Plain()
    student.extra = nn.Linear(3, 3)
    student.frozen = nn.Linear(3, 3).requires_grad_(False)
    distiller = make({"act": {"schedule": "linear"}, "kd": {}}, student)
    expected = ["student.extra.weight", "student.extra.bias"]
    assert idle_parameters(distiller, *batch()) == expected
    distiller.set_progress(4, 5)  # what act learns has a gradient of 0 then, and not none
    assert idle_parameters(distiller, *batch()) == expected


# --- what counts too little, or too much --------------------------------------------------------------------


def test_what_hardly_counts_is_said_with_the_weight_that_would() -> None:
    (line,) = warnings(examine(make({"at": {"weight": 0.001}}), *batch()))
    assert line.startswith("at (weight 0.001) has 0.0")
    assert "% of the gradient in the first step; it hardly counts; a weight of about" in line
    weight = float(line.split("about ")[1].split()[0])
    effects = examine(make({"at": {"weight": weight}}), *batch())
    assert effects[1].share == pytest.approx(0.1, rel=0.06)  # two digits of the weight
    assert warnings(effects) == []


def test_what_outweighs_the_others_is_said_with_the_weight_that_would_not() -> None:
    (line,) = warnings(examine(make({"at": {"weight": 500}}), *batch()))
    assert line.startswith("at (weight 500) has 9")
    assert "if the others are to count for more, a weight of about" in line
    weight = float(line.split("about ")[1].split()[0])
    assert examine(make({"at": {"weight": weight}}), *batch())[1].share == pytest.approx(0.5, rel=0.06)


def test_one_loss_alone_has_it_all() -> None:
    (effect,) = examine(make("ce"), *batch())
    assert effect.share == 1
    assert warnings([effect]) == []


def test_a_loss_that_is_0_already() -> None:
    """A student that starts as its teacher."""
    torch.manual_seed(0)
    student = Plain(widths=(8, 10, 12), dropout=0.0).eval()
    distiller = Distiller(student, copy.deepcopy(student), "kd", input_shape=SHAPE)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
    distiller.objective.active = ["kd"]
    effects = examine(distiller, *batch())
    check_effects(effects)
    assert math.isfinite(effects[0].share)


def test_values_that_are_not_finite() -> None:
    distiller = make({"at": {"weight": 1e300}})
    effects = examine(distiller, *batch())
    assert [effect.finite for effect in effects] == [True, False]
    with torch.no_grad():
        distiller.student.fc.bias[0] = math.inf  # type: ignore[index, operator, union-attr]
    assert not math.isfinite(examine(distiller, *batch())[0].value)


# --- in the run folder, on the page, and on the command line ------------------------------------------------


def distill(out: Path, method: Any = "at+kd", student: Any = None, **options: Any) -> Run:
    given = (student or tiny_net(1), tiny_net(2), tiny_data(), str(out))
    layers = ["low", "high"]
    return eyeline.distill(*given, method=method, **{**SETTINGS, "epochs": 2, "layers": layers, **options})


def effects_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "doctor.json").read_text())


def test_a_run_tells_of_its_first_step_and_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"at": {"weight": 1e-4}, "kd": {}}
    run = distill(tmp_path / "run", method)
    effects = effects_of(run.folder)
    settings = resolved(**{**SETTINGS, "epochs": 2})
    whole = Distiller(tiny_net(1), tiny_net(2), method, ["low", "high"], (1, 12, 12))
    first = next(iter(training_stream(tiny_data(), settings, Device.of(settings)).batches(0, 1)))
    assert effects["images"] == len(first.labels)
    for told, effect in zip(effects["terms"], examine(whole, first.images, first.labels), strict=True):
        assert told["name"] == effect.name
        for figure in ("value", "weight", "gradient", "share"):
            assert told[figure] == pytest.approx(getattr(effect, figure), rel=0.1)  # it may be bf16
    (line,) = [line for line in effects["warnings"] if line.startswith("at ")]
    assert capsys.readouterr().err.count(line) == 1
    page = eyeline.report(run.folder).read_text()
    assert "What each loss does" in page
    assert f"{100 * effects['terms'][2]['share']:.1f}" in page
    assert line in page
    monkeypatch.setattr("eyeline.training.run.examined", lambda *_: {"warnings": []})
    distill(tmp_path / "without", method)
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("run", "without")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    distill(tmp_path / "run", "ce", overwrite=True)
    assert effects_of(run.folder) == {"warnings": []}


def test_it_is_not_told_again_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunFolder.save_checkpoint

    def cut(self: RunFolder, state: Any) -> None:
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            distill(tmp_path / "run")
    before = effects_of(tmp_path / "run")
    monkeypatch.setattr("eyeline.training.run.examined", None)
    distill(tmp_path / "run", resume=True)
    assert effects_of(tmp_path / "run") == before


@pytest.mark.parametrize("verb", ["distill", "study", "check"])
def test_a_loss_that_teaches_nothing_is_refused_before_a_folder_is_made(tmp_path: Path, verb: str) -> None:
    student = tiny_net(1)
    student.low.requires_grad_(False)
    options: dict[str, Any] = {**SETTINGS, "layers": ["low"]}
    given: dict[str, Any] = {"student": student, "teacher": tiny_net(2), "data": tiny_data()}
    options |= {"methods": ["at"]} if verb == "study" else {"method": "at", "check": verb == "check"}
    do = eyeline.study if verb == "study" else eyeline.distill
    with pytest.raises(InputError, match="loss 'at' changes no parameter of the student: the layers low"):
        do(**given, out=str(tmp_path / "run"), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_check_prints_the_table_and_does_nothing_else(
    tmp_path: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    options = {k: v for k, v in SETTINGS.items() if k != "checkpoint_every"} | {
        "image_size": 28,
        "workers": 0,
    }
    eyeline.train("wrn_10_1", tiny_folder, "teacher", **{**options, "epochs": 1})
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    words = [f"--{name}={value}" for name, value in options.items()]
    method = "--method={at: {weight: 1e-4}, kd: {}}"
    assert main(["distill", "wrn_10_1", "teacher", tiny_folder, method, *words, "--check"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["loss", "value", "weight", "gradient", "share", "%"]
    assert [line.split()[0] for line in lines[2:5]] == ["ce", "at", "kd"]
    shares = [float(line.split()[-1]) for line in lines[2:5]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert max(map(len, lines)) <= 80
    text = " ".join(said.out.split())
    assert "on 8 training images, and nothing is trained" in text
    assert "at (weight 0.0001) has" in text
    assert sorted(tmp_path.rglob("*")) == before
    # a run that is there is no hindrance, and stays
    assert main(["distill", "wrn_10_1", "teacher", tiny_folder, "--out=teacher", *words, "--check"]) == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.whole
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_study_warns_once_of_a_method(
    tmp_path: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str], parallel: int
) -> None:
    options: dict[str, Any] = {**SETTINGS, "epochs": 1, "image_size": 28, "workers": 0}
    eyeline.train("wrn_10_1", tiny_folder, str(tmp_path / "teacher"), **options)
    capsys.readouterr()
    run = eyeline.study(
        "wrn_10_1",
        str(tmp_path / "teacher"),
        tiny_folder,
        str(tmp_path / "study"),
        methods={"weak": {"at": {"weight": 1e-4}}},
        seeds=2,
        parallel=parallel,
        **options,
    )
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weak: at (weight")]
    assert len(told) == 1
    effects = [effects_of(tmp_path / "study" / "weak" / f"seed-{seed}") for seed in (0, 1)]
    assert effects[0]["terms"][1]["value"] != effects[1]["terms"][1]["value"]
    page = (run.folder / "report.html").read_text()
    mean = sum(found["terms"][1]["share"] for found in effects) / 2
    assert "What each loss does" in page
    assert f"<td>{100 * mean:.1f}</td>" in page
    (tmp_path / "study" / "weak" / "seed-0" / "doctor.json").write_text("[]")
    (tmp_path / "study" / "weak" / "seed-1" / "doctor.json").write_text('{"terms": [3], "warnings": 3}')
    assert "What each loss does" not in eyeline.report(run.folder).read_text()
