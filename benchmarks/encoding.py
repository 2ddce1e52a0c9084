"""What targets kept in float16 or uint8 do to each loss and its gradient, on real images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

import eyeline
from eyeline.console import console
from eyeline.data.sources import load_data
from eyeline.distiller import Distiller
from eyeline.losses.base import Target
from eyeline.memory.encoding import encode
from eyeline.models import create_model
from measure import Result

TEACHER, STUDENT = "wrn_16_2.fashion_mnist", "wrn_16_1"
NAMES = ("at", "kd", "act", "cam", "cat", "sp", "gat")
METHODS: dict[str, dict[str, dict[str, object]]] = {
    **{name: {name: {}} for name in NAMES},
    "at norm": {"at": {"reduction": "norm"}},
}
BATCH = 100


def measure_encoding(images: int, epochs: int) -> Iterator[Result]:
    """Relative errors of each term and of its gradient, a batch of validation images at a time."""
    data = load_data("fashion_mnist_sample")
    pixels = (data.validation.images[:images].float() / 255 - data.mean[0]) / data.std[0]
    batches = list(zip(pixels.split(BATCH), data.validation.labels[:images].split(BATCH), strict=True))
    console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        run = eyeline.distill(
            STUDENT, TEACHER, "fashion_mnist_sample", folder, method="at+kd", epochs=epochs, train_size=images
        )
        student = run.load().requires_grad_()
    teacher = create_model(TEACHER, pretrained=True)
    for precision in ("float16", "uint8"):
        samples: dict[str, list[float]] = {}
        for name, method in METHODS.items():
            torch.manual_seed(0)
            distiller = Distiller(student, teacher, {**method, "ce": {"weight": 0}}, input_shape=(1, 28, 28))
            distiller.eval()
            for batch in batches:
                loss, gradient = _error(distiller, *batch, precision)
                samples.setdefault(f"{name}, loss", []).append(loss)
                samples.setdefault(f"{name}, gradient", []).append(gradient)
            distiller.close()
        yield Result(
            f"Targets kept in {precision}: relative error, {TEACHER} -> {STUDENT}",
            "relative",
            samples,
            notes=[
                f"batches of {BATCH} validation images, in float32; "
                f"student: {epochs} epochs of at+kd on {images} images",
                "gradient: for all weights of the student, norm of the difference over the norm",
            ],
        )


def _error(distiller: Distiller, images: Tensor, labels: Tensor, precision: str) -> tuple[float, float]:
    targets = distiller.target(images, labels)
    stored = {name: encode(target, precision).decode() for name, target in targets.items()}
    (exact, exact_gradient), (loss, gradient) = (
        _term(distiller, images, labels, given) for given in (targets, stored)
    )
    return abs(loss - exact) / exact, float((gradient - exact_gradient).norm() / exact_gradient.norm())


def _term(
    distiller: Distiller, images: Tensor, labels: Tensor, targets: Mapping[str, Target]
) -> tuple[float, Tensor]:
    """The term and its gradient for the student's weights."""
    total = distiller(images, labels, targets).total
    found = torch.autograd.grad(total, list(distiller.student.parameters()), allow_unused=True)
    return float(total.detach()), torch.cat([g.flatten() for g in found if g is not None])
