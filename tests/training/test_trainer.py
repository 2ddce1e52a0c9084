from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch._dynamo.utils import counters

from eyeline.console import show_progress
from eyeline.data.batches import Batch
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import ImageData
from eyeline.data.views import CropFlip
from eyeline.device import Device, has_native_bf16
from eyeline.distiller import Distiller
from eyeline.errors import InputError, TrainingStopped
from eyeline.experiment.experiment import from_seed
from eyeline.files import LOCK
from eyeline.objective.terms import Objective
from eyeline.runs.folder import RunFolder, read_recipe
from eyeline.settings import Settings
from eyeline.training import trainer
from eyeline.training.evaluation import evaluate
from eyeline.training.optimizer import learning_rate_factor, make_optimizer
from eyeline.training.streams import evaluation_stream, training_stream
from eyeline.training.trainer import fit
from tiny import SETTINGS, resolved, tiny_data, tiny_net

FLOAT32 = {**SETTINGS, "precision": "float32", "compile": "off"}


def run(
    folder: Path,
    method: Any = "at+kd",
    student: Any = None,
    hooks: dict[str, Any] | None = None,
    layers: Any = ("low", "high"),
    data: ImageData | None = None,
    **settings: Any,
) -> Distiller:
    student = tiny_net(1) if student is None else student
    settings = {**FLOAT32, **settings}
    distiller = Distiller(student, tiny_net(2), method, layers, (1, 12, 12))
    for name, hook in (hooks or {}).items():  # once the probe for the layers is done
        student.get_submodule(name).register_forward_hook(hook)
    record = RunFolder(folder, {"verb": "distill", **settings}, resume=True)
    with record.claimed():
        fit(distiller, data or tiny_data(), resolved(**settings), record)
    return distiller


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- learning rate ------------------------------------------------------------------------------------------


def rates(settings: Settings, steps: int = 3) -> list[float]:
    """Of the first step of every epoch, for a peak of 0.1."""
    return [0.1 * learning_rate_factor(settings, epoch * steps, steps) for epoch in range(settings.epochs)]


def test_the_schedule_of_the_papers() -> None:
    expected = [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40
    assert rates(resolved()) == pytest.approx(expected, rel=1e-12)
    last_step, first_step = 60 * 391 - 1, 60 * 391
    assert learning_rate_factor(resolved(), last_step, 391) == 1
    assert learning_rate_factor(resolved(), first_step, 391) == pytest.approx(0.2)


@pytest.mark.parametrize("epochs", [1, 7, 10, 30, 90, 100, 240])
def test_milestones_fall_at_their_fraction_of_any_number_of_epochs(epochs: int) -> None:
    settings = resolved(epochs=epochs, milestones=(0.3, 0.6, 0.8), gamma=0.2)
    for epoch, rate in enumerate(rates(settings)):
        passed = sum(10 * epoch >= tenths * epochs for tenths in (3, 6, 8))
        assert rate == pytest.approx(0.1 * 0.2**passed)


def test_imagenet_schedule() -> None:
    settings = resolved(epochs=100, milestones=(0.3, 0.6, 0.9), gamma=0.1)
    assert rates(settings) == pytest.approx([0.1] * 30 + [0.01] * 30 + [1e-3] * 30 + [1e-4] * 10)


def test_cosine_is_that_of_torch() -> None:
    settings = resolved(epochs=5, schedule="cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert learning_rate_factor(settings, step, 4) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_linearly_to_the_peak() -> None:
    for schedule in ("constant", "cosine", "step"):
        settings = resolved(epochs=10, schedule=schedule, warmup_epochs=2)
        ours = [learning_rate_factor(settings, step, 4) for step in range(9)]
        assert ours == pytest.approx([(step + 1) / 9 for step in range(9)])


def test_auto_and_constant() -> None:
    assert rates(resolved(epochs=5, optimizer="adamw"))[2] == pytest.approx(
        0.05 * (1 + math.cos(0.4 * math.pi))
    )
    assert rates(resolved(epochs=5, optimizer="adamw", schedule="step"))[4] == pytest.approx(0.0008)
    assert set(rates(resolved(schedule="constant"))) == {0.1}


def test_the_optimizers_of_the_papers() -> None:
    sgd = make_optimizer(resolved(), [torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (0.1, 0.9, 5e-4, False)
    adam = make_optimizer(resolved(optimizer="adamw"), [torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (1e-3, 0.05)


# --- the loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_the_plain_loop(tmp_path: Path, optimizer: str) -> None:
    """The same weights as a loop written down here; without dropout, with schedules of rate and weight."""
    settings = resolved(**{**FLOAT32, "optimizer": optimizer, "epochs": 3, "learning_rate": 0.01, "seed": 5})
    ours = tiny_net(1, dropout=0.0)
    run(tmp_path, student=ours, **{"optimizer": optimizer, "epochs": 3, "learning_rate": 0.01, "seed": 5})

    data, student, teacher = tiny_data(), tiny_net(1, dropout=0.0), tiny_net(2).eval()
    normalize, view = Normalization(data.mean, data.std), CropFlip(data.train.images)  # type: ignore[union-attr]
    theirs: torch.optim.Optimizer = (
        torch.optim.SGD(student.parameters(), 0.01, 0.9, weight_decay=5e-4)
        if optimizer == "sgd"
        else torch.optim.AdamW(student.parameters(), 0.01, weight_decay=0.05)
    )
    stream = training_stream(data, settings, Device.of(settings))

    def maps(network: Any, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        low = network.low(images)
        high = network.high(low)
        flat = [F.normalize(f.square().sum(1).flatten(1), dim=1) for f in (low, high)]
        return network.head(high.mean((2, 3))), flat

    for epoch in range(3):
        for step in range(7):
            indices = stream.indices(epoch * 7 + step)[1]
            images, labels = normalize(view(indices, 5, epoch)), data.train.labels[indices]
            (logits, ours_maps), (answers, their_maps) = maps(student, images), maps(teacher, images)
            at = sum((a - b.detach()).square().mean() for a, b in zip(ours_maps, their_maps, strict=True))
            soft = F.softmax(answers.detach() / 4, 1)
            kd = 16 * F.kl_div(F.log_softmax(logits / 4, 1), soft, reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * kd + 1000 * (1 - epoch / 2) * at
            theirs.zero_grad()
            loss.backward()
            done = epoch / 3
            factor = 0.2 ** sum(done >= m - 1e-9 for m in (0.3, 0.6, 0.8))
            if optimizer == "adamw":
                factor = (1 + math.cos(math.pi * (epoch * 7 + step) / 21)) / 2
            theirs.param_groups[0]["lr"] = 0.01 * factor
            theirs.step()
    tolerance = 1e-4 if optimizer == "sgd" else 5e-3  # Adam divides by small second moments
    for name, tensor in student.state_dict().items():
        if name in ("low.0.bias", "high.0.bias") or name.endswith("running_mean"):
            continue  # batch norm takes this bias away: its gradient is rounding
        assert torch.allclose(ours.state_dict()[name].float(), tensor.float(), atol=tolerance), name


@pytest.mark.parametrize(
    "method", ["at+kd", {"act": {}, "ce": {"weight": 0}, "hint": {"weight": 0}}], ids=["at+kd", "act alone"]
)
def test_a_term_of_weight_0_has_no_figure_and_the_student_is_the_same(
    tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference computes all terms in all epochs, and multiplies them by their weights."""
    student, theirs = tiny_net(1), tiny_net(1)
    distiller = run(tmp_path / "run", method, student)
    terms = {*distiller.objective.method}
    falls = {"at"} if method == "at+kd" else {"act"}
    never = {name for name, term in distiller.objective.method.items() if not term.weight.value}
    for number, row in enumerate(rows(tmp_path / "run"), 1):
        shown = {name for name in terms if row.get(name)}
        assert shown == terms - never - (falls if number == 4 else set())
    monkeypatch.setattr(Objective, "active_in", lambda self, *_: list(self.method))
    run(tmp_path / "whole", method, theirs)
    for ours, whole in zip(rows(tmp_path / "run"), rows(tmp_path / "whole"), strict=True):
        kept = {k: v for k, v in ours.items() if v and k != "images_per_second"}
        assert kept == {k: whole[k] for k in kept}
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in student.state_dict().items())


def test_the_student_trains_on_after_a_validation(tmp_path: Path) -> None:
    """Batch norm moves and dropout drops in every epoch; the teacher never moves."""
    moved, modes = [], []
    hooks = {
        "low.1": lambda m, i, o: moved.append(float(m.running_mean.sum())) if m.training else None,
        "dropout": lambda m, i, o: modes.append(m.training),
    }
    distiller = run(tmp_path, hooks=hooks, epochs=3)
    assert len(set(moved)) == len(moved) == 21
    assert modes == ([True] * 7 + [False]) * 3  # 7 steps, one batch of validation
    fresh = tiny_net(2).state_dict()
    assert distiller.teacher is not None
    assert all(torch.equal(t, fresh[n]) for n, t in distiller.teacher.state_dict().items())


def test_the_figures_are_means_over_the_images(tmp_path: Path) -> None:
    """With a rate too small to move a weight, the metrics are those of the network as it was."""
    student = tiny_net(1, dropout=0.0)
    run(tmp_path, student=student, learning_rate=1e-30, epochs=1, weight_decay=0.0, seed=3)
    data, again, teacher = tiny_data(), tiny_net(1, dropout=0.0), tiny_net(2)
    settings = resolved(**{**FLOAT32, "seed": 3})
    distiller = Distiller(again, teacher, "at+kd", ["low", "high"])
    sums = dict.fromkeys(("ce", "kd", "at", "loss", "train_accuracy"), 0.0)
    for batch in training_stream(data, settings, Device.of(settings)).batches(0, 7):
        assert isinstance(batch, Batch)
        terms = distiller(batch.images, batch.labels)
        n = len(batch.labels)
        for name in ("ce", "kd", "at"):
            sums[name] += float(terms[name]) * n
        sums["loss"] += n * float(0.1 * terms["ce"] + 0.9 * terms["kd"] + 1000 * terms["at"])
        sums["train_accuracy"] += int((terms.logits.argmax(1) == batch.labels).sum())
    (row,) = rows(tmp_path)
    for name, total in sums.items():
        assert float(row[name]) == pytest.approx(total / 50, rel=1e-5), name
    again.eval()
    split = data.validation
    logits = again(Normalization(data.mean, data.std)(split.images))  # type: ignore[union-attr]
    assert float(row["validation_loss"]) == pytest.approx(
        float(F.cross_entropy(logits, split.labels).detach()), rel=1e-5
    )
    assert float(row["validation_accuracy"]) == float((logits.argmax(1) == split.labels).double().mean())
    assert float(row["images_per_second"]) > 0


def test_metrics_and_tensorboard_tell_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, epochs=4, validate_every=3)
    written = rows(tmp_path)
    assert list(written[0]) == [
        *("epoch", "step", "learning_rate", "loss", "train_accuracy", "ce", "at", "kd"),
        *("validation_accuracy", "validation_loss", "images_per_second"),
    ]
    assert [row["epoch"] for row in written] == ["1", "2", "3", "4"]
    assert [row["step"] for row in written] == ["7", "14", "21", "28"]
    assert [bool(row["validation_accuracy"]) for row in written] == [False, False, True, True]
    assert [float(row["learning_rate"]) for row in written] == pytest.approx([0.05, 0.05, 0.01, 0.01 / 5])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "ce", "at", "kd", "validation_accuracy", "learning_rate", "images_per_second"):
        points = [(e.step, e.value) for e in events.Scalars(name)]
        assert points == [
            (int(r["step"]), pytest.approx(float(r[name]), rel=1e-6)) for r in written if r[name]
        ]


# --- what is shown ------------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, **settings: Any) -> list[str]:
    """What training shows on 80 columns, escape sequences taken away, for the longest figures there are."""
    text = io.StringIO()
    screen = Console(file=text, force_terminal=terminal, width=80, color_system=None)
    monkeypatch.setattr("eyeline.console.console", screen)
    terms = "ce 0.000123  at 0.000123  kd 0.000123  train 100.0 %  validation 100.0 %"
    with show_progress(Settings(**settings), 50, 0, "at+kd, seed 123 (10/10)", shown=True) as show:
        for step in range(1, 51):
            show(step, lambda: ("epoch 200/200", terms, "123,456 images/s"))
    plain = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", text.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line]


def test_the_bar_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=True)
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if line.startswith("at+kd, seed 123 (10/10)")]
    assert "epoch 200/200 123,456 images/s" in bars[-1]
    assert {line[:2] for line in lines} == {"at", "  "}  # never a third line
    assert lines[-1].endswith("kd 0.000123  train 100.0 %  validation 100.0 %")


def test_elsewhere_a_plain_line_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False)
    assert len(lines) == 10
    starts = [f"at+kd, seed 123 (10/10)  {percent} %  epoch 200/200  ce" for percent in range(10, 101, 10)]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert all(line.endswith("validation 100.0 %  123,456 images/s") for line in lines)
    assert shown(monkeypatch, terminal=True, progress=False) == []


def test_figures_do_not_depend_on_the_batch_size() -> None:
    """But for rounding; and no batch of an evaluation takes more memory than a step of training."""
    data, network = tiny_data(), tiny_net(1)
    found = []
    for batch_size, largest in ((1, 4), (2, 8), (8, 21), (200, 21)):
        settings = resolved(**{**FLOAT32, "batch_size": batch_size})
        device = Device.of(settings)
        batches = list(evaluation_stream(data.validation, data, settings, device))
        assert max(len(batch.labels) for batch in batches) == largest
        found.append(evaluate(network, batches, device.autocast))
    for figures in found:
        assert figures.accuracy == found[0].accuracy
        assert figures.loss == pytest.approx(found[0].loss, rel=1e-5)
    many = tiny_data().validation.subset(torch.arange(21).repeat(100))
    settings = resolved(**{**FLOAT32, "batch_size": 4000})
    batches = list(evaluation_stream(many, data, settings, Device.of(settings)))
    assert [len(batch.labels) for batch in batches] == [500] * 4 + [100]


# --- when it cannot go on -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    class Exploding(torch.nn.Module):
        """Not finite from the 11th training step on."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = tiny_net(1), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return self.net(images) * (float("inf") if self.calls > 10 else 1.0)

    with pytest.raises(
        TrainingStopped, match=r"loss term ce is not finite at step 11 \(epoch 2\); .* \(step 10\)"
    ):
        run(tmp_path, method="ce", student=Exploding(), layers="auto")
    assert RunFolder(tmp_path, {"verb": "distill", **FLOAT32}, resume=True).load_checkpoint()["step"] == 10  # type: ignore[index]
    assert [row["epoch"] for row in rows(tmp_path)] == ["1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(LOCK, "environment.json", "last.ckpt", "metrics.csv", "recipe.yaml", "tensorboard")
    ]


def test_it_is_seen_within_200_steps(tmp_path: Path) -> None:
    """Also where the epochs, and so the checkpoints, are longer."""

    class Exploding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = tiny_net(1), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return self.net(images) * (float("nan") if self.calls > 100 else 1.0)

    student, options = Exploding(), {"batch_size": 2, "checkpoint_every": None}
    with pytest.raises(TrainingStopped, match="loss term ce is not finite at step 101 "):
        run(tmp_path, "ce", student, layers="auto", data=tiny_data(420), **options)
    assert student.calls == 200


@pytest.mark.parametrize("every", [None, 2])
def test_a_learning_rate_beyond_reason(tmp_path: Path, every: int | None) -> None:
    with pytest.raises(TrainingStopped, match=r"is not finite .*a smaller learning_rate") as stopped:
        run(tmp_path, method="kd", learning_rate=1e30, checkpoint_every=every)
    saved = tmp_path / "last.ckpt"
    if saved.exists():
        assert "last good checkpoint" in str(stopped.value)
        state = torch.load(saved, weights_only=True)
        assert all(bool(torch.isfinite(t).all()) for t in state["student"].values())
    else:
        assert "there is no checkpoint yet" in str(stopped.value)
    assert not (tmp_path / "result.json").exists()
    assert not list(tmp_path.glob(".*.part"))


# --- hardware -----------------------------------------------------------------------------------------------


def test_precision(tmp_path: Path) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    for precision in ("float32", "bf16", "auto"):
        student = tiny_net(1)
        seen[precision] = set()
        hooks = {"head": lambda m, i, o, s=seen[precision]: s.add(o.dtype)}
        run(tmp_path / precision, student=student, hooks=hooks, epochs=1, precision=precision)
        assert all(p.dtype == torch.float32 for p in student.parameters())
    assert seen["float32"] == {torch.float32}
    assert seen["bf16"] == {torch.bfloat16}
    assert seen["auto"] == {torch.bfloat16 if has_native_bf16("cpu") else torch.float32}
    one, other = rows(tmp_path / "float32")[0], rows(tmp_path / "bf16")[0]
    assert float(one["ce"]) == pytest.approx(float(other["ce"]), rel=0.05)


@pytest.mark.unchecked
@pytest.mark.whole
def test_compiled_training_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the graph is captured as for any backend; to generate code as well would take half a minute
    compiled = []
    plain = torch.nn.Module.compile

    def eager(self: torch.nn.Module, *args: Any, **options: Any) -> None:
        compiled.append(type(self).__name__)
        plain(self, *args, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    same = {"method": "at+kd+hint", "epochs": 2}
    torch.manual_seed(0)  # hint's regressor
    off = run(tmp_path / "off", student=tiny_net(1, dropout=0.0), compile="off", **same)
    assert not compiled
    torch.manual_seed(0)
    on = run(tmp_path / "on", student=tiny_net(1, dropout=0.0), compile="on", **same)
    assert compiled == ["TinyNet", "Objective", "TinyNet"]
    for epoch, (one, other) in enumerate(zip(rows(tmp_path / "off"), rows(tmp_path / "on"), strict=True)):
        # at has no weight in the last epoch, for which the losses are compiled once more
        for name in ("ce", "kd", "hint", "validation_loss", *(["at"] if epoch == 0 else [])):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3)
    # the trials have left no trace in running statistics
    states = [dict(distiller.named_buffers()) for distiller in (off, on)]
    assert any(name.endswith("running_mean") for name in states[0])
    for name, buffer in states[0].items():
        torch.testing.assert_close(states[1][name], buffer, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chosen", [["losses"], []])
def test_what_auto_chose_to_compile_is_in_the_recipe(
    tmp_path: Path, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "compile_for", lambda *_, **__: chosen)
    run(tmp_path, epochs=1, compile="auto")
    assert read_recipe(tmp_path)["compile"] == (chosen or "off")


@pytest.mark.unchecked
@pytest.mark.whole
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_training_runs_the_very_code_that_was_compiled_before(
    schedule: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of other images, in dtype or strides, it would be compiled again, and a teacher's constants be lost;
    # only the losses are, for both sizes of batches, in an epoch in which one of them has no weight
    torch._dynamo.reset()
    graphs = []
    plain, before = torch.nn.Module.compile, trainer.compile_for

    def counted(*args: Any, **options: Any) -> list[str]:
        compiled = before(*args, **options)
        graphs.append(counters["stats"]["unique_graphs"])
        return compiled

    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **o: plain(m, **{**o, "backend": "aot_eager"}))
    monkeypatch.setattr(trainer, "compile_for", counted)
    method = {"at": {"schedule": schedule}, "kd": {}}
    with torch._dynamo.config.patch(recompile_limit=1):  # as when a study has compiled those of many runs
        run(tmp_path, method, tiny_net(1), epochs=2, compile="on", precision=precision)
    assert counters["stats"]["unique_graphs"] - graphs[0] == (0 if schedule == "constant" else 2)
    assert len({row["loss"] for row in rows(tmp_path)}) == 2


@pytest.mark.parametrize("wrong", [{"accelerator": "cudaa"}, {"accelerator": "tpu"}])
def test_hardware_that_is_not_there(wrong: dict[str, Any]) -> None:
    settings = Settings.of(**{**SETTINGS, **wrong})
    with pytest.raises(InputError, match="cannot use accelerator="):
        Device.of(settings)


def test_augmentation_for_files_only() -> None:
    with pytest.raises(InputError, match="'resized-crop' is for folders of images"):
        resolved(**SETTINGS, augmentation="resized-crop")


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return from_seed(Settings(seed=seed), lambda: torch.nn.Linear(5, 5)).weight

    torch.manual_seed(1)
    first = weights(3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))
