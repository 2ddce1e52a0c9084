"""Accuracy, loss and attention agreement over a split, against sums by hand."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline import Distiller, InputError, Observer
from eyeline.data.batches import Batch
from eyeline.functional import attention_transfer_loss
from eyeline.training.evaluation import attention_loss, evaluate
from networks import Plain

SHAPE = (3, 16, 16)


def split(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *SHAPE, generator=generator), torch.randint(5, (count,), generator=generator)


def batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    indices = torch.arange(len(labels))
    return [Batch(*(t[i : i + size] for t in (images, labels, indices))) for i in range(0, len(labels), size)]


@pytest.mark.parametrize("size", [4, 5, 11, 100])
def test_accuracy_and_loss_by_hand(size: int) -> None:
    torch.manual_seed(1)
    model, (images, labels) = Plain().train(), split(11)
    with torch.no_grad():
        probabilities = model.eval()(images).double().softmax(1).tolist()
    model.train()
    labels[::2] = torch.tensor(probabilities).argmax(1)[::2]
    losses = [
        -torch.tensor(p[y]).double().log().item() for p, y in zip(probabilities, labels.tolist(), strict=True)
    ]
    right = sum(p.index(max(p)) == y for p, y in zip(probabilities, labels.tolist(), strict=True))
    figures = evaluate(model, batches(images, labels, size), contextlib.nullcontext)
    assert figures.accuracy == right / 11
    assert figures.answers.tolist() == [p.index(max(p)) for p in probabilities]
    assert 0 < right < 11
    assert figures.loss == pytest.approx(sum(losses) / 11, rel=1e-5)


def test_precision_is_that_of_the_context() -> None:
    model, (images, labels) = Plain(), split(6)
    full = evaluate(model, batches(images, labels, 4), contextlib.nullcontext)
    low = evaluate(model, batches(images, labels, 4), lambda: torch.autocast("cpu", torch.bfloat16))
    assert low.loss != full.loss
    assert low.loss == pytest.approx(full.loss, rel=0.05)


def test_network_is_left_as_it_was() -> None:
    model, (images, labels) = Plain().train(), split(6)
    model.stage2.eval()  # frozen statistics
    modes = [module.training for module in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}

    evaluate(model, batches(images, labels, 4), contextlib.nullcontext)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError):
        evaluate(model, batches(images[:, :1], labels, 4), contextlib.nullcontext)
    assert [module.training for module in model.modules()] == modes

    with Distiller(model, Plain(), "at", input_shape=SHAPE) as distiller:
        attention_loss(distiller, batches(images, labels, 4), contextlib.nullcontext)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("size", [4, 11])
def test_attention_loss_is_the_definition_over_the_whole_split(size: int) -> None:
    torch.manual_seed(1)
    student, teacher, (images, labels) = (
        Plain().train(),
        Plain(widths=(6, 8, 10), classes=7).train(),
        split(11),
    )
    for layers, names in (
        ("auto", ["stage1", "stage2", "stage3"]),
        (["stage2", "stage3"], ["stage2", "stage3"]),
    ):
        with Distiller(student, teacher, "at", layers, SHAPE) as distiller:
            found = attention_loss(distiller, batches(images, labels, size), contextlib.nullcontext)
        with torch.no_grad():
            seen = Observer(student.eval(), names)(images).features
            shown = Observer(teacher.eval(), names)(images).features
        expected = sum(attention_transfer_loss(s, t).item() for s, t in zip(seen, shown, strict=True))
        assert found == pytest.approx(expected, rel=1e-5)
        assert found > 0


def test_attention_loss_of_the_teachers_own_copy_is_zero() -> None:
    teacher, (images, labels) = Plain(), split(5)
    student = Plain()
    student.load_state_dict(teacher.state_dict())
    with Distiller(student, teacher, "at", input_shape=SHAPE) as distiller:
        found = attention_loss(distiller, batches(images, labels, 2), contextlib.nullcontext)
    assert found == pytest.approx(0, abs=1e-12)


def test_no_images() -> None:
    with pytest.raises(InputError, match="no images to evaluate on"):
        evaluate(Plain(), [], contextlib.nullcontext)
    with pytest.raises(InputError, match="no images to evaluate on"):
        attention_loss(Distiller(Plain(), Plain(), "at"), [], contextlib.nullcontext)


def test_logits_are_compared_with_labels_in_single_precision() -> None:
    """bfloat16 logits that tie after rounding the loss would otherwise shift it."""
    model, (images, labels) = Plain().bfloat16(), split(6)
    figures = evaluate(model, batches(images.bfloat16(), labels, 6), contextlib.nullcontext)
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(images.bfloat16()).float(), labels).item()
    assert figures.loss == pytest.approx(expected, rel=1e-6)
