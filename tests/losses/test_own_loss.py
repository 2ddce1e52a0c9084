"""A loss that is not eyeline's own: registered, it is named like any other."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import eyeline
from eyeline.errors import InputError
from eyeline.losses import LOSSES, Loss, Target, register
from eyeline.names import has_own_losses, losses_in_source
from eyeline.objective import method_name, resolve_method
from eyeline.observe import Observation
from tiny import SETTINGS, tiny_data, tiny_net


@pytest.fixture(autouse=True)
def losses_as_they_were() -> Iterator[None]:
    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)


class Shifted(Loss):
    """Mean squared difference of features, the teacher's shifted."""

    name = "shifted"
    needs = frozenset({"features"})

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.by = by

    def target(self, teacher: Observation) -> Target:
        return {f"mean{i}": f.detach().mean(1) + self.by for i, f in enumerate(teacher.features)}

    def forward(self, student: Observation, target: Target, labels: Tensor) -> Tensor:
        return torch.stack(
            [F.mse_loss(f.mean(1), target[f"mean{i}"]) for i, f in enumerate(student.features)]
        ).sum()


def test_it_is_a_term_like_any_other() -> None:
    with pytest.raises(InputError, match="unknown loss 'shifted'"):
        resolve_method("shifted")
    assert register(Shifted) is Shifted
    assert resolve_method({"kd": {}, "shifted": {"by": 2}})["shifted"] == {
        "weight": 1.0, "schedule": "constant", "by": 2,
    }  # fmt: skip
    assert method_name("shifted+at") == "at+shifted"
    student, teacher = tiny_net(1), tiny_net(2)
    images, labels = torch.randn(4, 1, 12, 12), torch.arange(4) % 3
    with eyeline.Distiller(student, teacher, {"shifted": {"by": 2, "weight": 3}}) as distiller:
        terms = distiller(images, labels)
        terms.total.backward()
        with torch.no_grad():
            ours, theirs = distiller.observe_student(images), distiller.observe_teacher(images)
    expected = sum(
        ((a.mean(1) - b.mean(1) - 2) ** 2).mean() for a, b in zip(ours.features, theirs.features, strict=True)
    )
    torch.testing.assert_close(terms["shifted"], expected)
    torch.testing.assert_close(terms.total.detach(), terms["ce"] + 3 * terms["shifted"])
    assert all(p.grad is not None for p in student.parameters())


def test_no_other_process_knows_it() -> None:
    register(Shifted)
    assert "shifted" not in losses_in_source()
    assert has_own_losses("at+kd")
    assert not has_own_losses("shifted+kd")


def test_a_class_that_is_defined_again_replaces_the_first() -> None:
    def cell(default: float) -> type[Loss]:
        @register
        class Again(Loss):
            name = "again"

            def __init__(self, by: float = default) -> None:
                super().__init__()

        return Again

    cell(1.0)
    assert cell(2.0) is LOSSES["again"]
    assert resolve_method("again")["again"]["by"] == 2.0


def made(name: Any, **inside: Any) -> type[Loss]:
    return type("Made", (Loss,), {"name": name, **inside})


def without_default(self: Loss, by: float) -> None: ...
def with_weight(self: Loss, weight: float = 1.0) -> None: ...


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (made("at"), "loss 'at' of .*Made is eyeline.losses.attention_transfer.AttentionTransfer already"),
        (made("a.b"), "a term is called 'a.b'; expected a letter, then"),
        (made("train_accuracy"), "a term is called 'train_accuracy'"),
        (made(None), "a term is called None"),
        (
            made("mine", __init__=without_default),
            "'by' of loss 'mine': expected one with a default",
        ),
        (made("mine", __init__=with_weight), "parameter 'weight' of loss 'mine'"),
        (
            made("mine", needs=frozenset({"feature"})),
            "unknown need of loss 'mine' 'feature'; did you mean 'features'",
        ),
    ],
)
def test_what_cannot_be_registered(loss: type[Loss], message: str) -> None:
    with pytest.raises(InputError, match=message):
        register(loss)
    assert LOSSES.get(loss.name) is not loss


@pytest.mark.whole
def test_the_code_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page.partition("## A loss of your own")[2], re.M | re.S)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"student": tiny_net(1), "teacher": tiny_net(2), "data": tiny_data()}
    given |= {"settings": {**SETTINGS, "epochs": 2}, "__name__": "own"}
    exec(code.replace("epochs=2", "**settings"), given)
    run, distiller = given["run"], given["distiller"]
    assert run.result["method"] == "logits_mse"
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert all(float(row["logits_mse"]) > 0 for row in rows)
    images, labels = torch.randn(4, 1, 12, 12), torch.arange(4) % 3
    terms = distiller(images, labels)
    with torch.no_grad():
        expected = F.mse_loss(terms.logits, 2 * distiller.observe_teacher(images).logits)
    torch.testing.assert_close(terms["logits_mse"], expected)
    torch.testing.assert_close(terms.total.detach(), terms["ce"] + 0.1 * expected)
    distiller.close()


@pytest.mark.whole
def test_another_code_is_another_loss(tmp_path: Path) -> None:
    """A run and a memory of the first are not those of the second, of the same name and parameters."""
    given: dict[str, Any] = {**SETTINGS, "epochs": 1, "method": "shifted", "memory": str(tmp_path / "m")}
    register(Shifted)
    first = eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), **given)
    other = type("Shifted", (Shifted,), {"target": lambda self, seen: Shifted.target(self, seen)})
    other.__qualname__ = Shifted.__qualname__
    register(other)
    with pytest.raises(InputError, match="another content of losses"):
        eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), resume=True, **given)
    eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "other"), **given)
    assert len(list((tmp_path / "m").glob("shifted-*"))) == 2
    register(Shifted)
    again = eyeline.distill(
        tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), resume=True, **given
    )
    assert again.result == first.result


def test_what_cannot_be_registered_or_summed() -> None:
    with pytest.raises(InputError, match="needs of loss 'text' is 'features'; expected a frozenset"):
        register(type("Text", (Loss,), {"name": "text", "needs": "features"}))

    class Endless(Loss):
        name = "endless"

        def __init__(self, clip: float = float("inf")) -> None:
            super().__init__()

    with pytest.raises(InputError, match="'clip' of loss 'endless' is inf by default"):
        register(Endless)
    register(
        type("Several", (Shifted,), {"name": "several", "forward": lambda self, s, t, y: s.logits.sum(1)})
    )
    distiller = eyeline.Distiller(tiny_net(1), tiny_net(2), "several")
    with pytest.raises(InputError, match=r"loss 'several' answers \[5\]; expected a scalar"):
        distiller(torch.randn(5, 1, 12, 12), torch.zeros(5, dtype=torch.int64))


def test_a_loss_that_fails_to_set_up_leaves_no_hooks() -> None:
    def fail(self: Loss, student: Any, teacher: Any) -> None:
        raise ValueError("mine")

    register(type("Failing", (Shifted,), {"name": "failing", "setup": fail}))
    student, teacher = tiny_net(1), tiny_net(2)
    with pytest.raises(ValueError, match="mine"):
        eyeline.Distiller(student, teacher, "at+failing")
    modules = [*student.modules(), *teacher.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
