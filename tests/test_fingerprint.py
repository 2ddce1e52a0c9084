"""A network is known again by what it answers, on whatever processor, and another one is not taken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline import create_model
from eyeline.fingerprint import student_fingerprint, teacher_fingerprint
from eyeline.hashing import NEAR, same, weights_hash
from tiny import TinyNet, tiny_net

SHAPE = (1, 12, 12)


class Plain(TinyNet):
    """What it does is decided by numbers and functions that no weight and no text of it shows."""

    def __init__(
        self, alpha: float = 0.9, dropout: float = 0.1, activation: Any = F.relu, after: float = 1.0
    ) -> None:
        super().__init__()
        self.alpha, self.share, self.activation, self.after = alpha, dropout, activation, after

    def forward(self, images: Tensor) -> Tensor:
        low = self.low(images)
        high = self.activation(self.alpha * self.high(low) - low.mean())
        high = F.dropout(high.mean((2, 3)), self.share, self.training)
        return self.head(high if self.training else self.after * high)


def made(**options: Any) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Plain(**options)


@pytest.mark.parametrize(
    "other",
    [{"alpha": 0.8}, {"dropout": 0.3}, {"activation": F.gelu}, {"after": 1.1}],
    ids=lambda options: next(iter(options)),
)
def test_a_student_that_differs_where_no_weight_shows_it(other: dict[str, Any]) -> None:
    first, second = made(), made(**other)
    assert weights_hash(first) == weights_hash(second)
    assert same(student_fingerprint(first, SHAPE), student_fingerprint(made(), SHAPE))
    assert not same(student_fingerprint(first, SHAPE), student_fingerprint(second, SHAPE))


def test_other_weights_and_other_frozen_parts_make_another_student() -> None:
    first = student_fingerprint(made(), SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        assert not same(first, student_fingerprint(Plain(), SHAPE))
    frozen = made()
    frozen.low.requires_grad_(False)
    assert not same(first, student_fingerprint(frozen, SHAPE))


@pytest.mark.parametrize("other", [{"alpha": 0.8}, {"activation": F.gelu}], ids=str)
def test_a_teacher_that_differs_where_no_weight_shows_it(other: dict[str, Any]) -> None:
    first = teacher_fingerprint(made().eval(), SHAPE)
    assert same(first, teacher_fingerprint(made(dropout=0.3).eval(), SHAPE))  # it never drops
    assert not same(first, teacher_fingerprint(made(**other).eval(), SHAPE))


def test_a_network_is_left_as_it_was() -> None:
    network = made()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    student_fingerprint(network, SHAPE)
    teacher_fingerprint(network, SHAPE)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_answers_need_not_be_equal_to_be_the_same() -> None:
    ours = teacher_fingerprint(tiny_net(1).eval(), SHAPE)
    answers = torch.tensor(ours["answers"])
    far = torch.randn(8, generator=torch.Generator().manual_seed(0))
    for share, expected in ((0.1, True), (0.9, True), (1.1, False)):
        moved = answers + share * NEAR * answers.norm() * far / far.norm()
        assert same(ours, {**ours, "answers": moved.tolist()}) == expected
    assert not same(ours, {**ours, "weights": "another"})
    assert not same(ours, None)
    assert same("a", {"weights": "a", "answers": [1.0]})  # as an earlier version wrote it
    assert not same("b", {"weights": "a", "answers": [1.0]})
    assert same("a", "a")
    assert not same("a", "b")


def test_values_that_are_not_finite() -> None:
    network = tiny_net(1)
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    first = student_fingerprint(network, SHAPE)
    assert same(first, student_fingerprint(network, SHAPE))
    assert all(isinstance(number, float) for number in json.loads(json.dumps(first))["training"])


NETWORKS = {"wrn_16_1": (3, 32, 32), "resnet20": (3, 32, 32), "nin_wide": (3, 32, 32)}


def fingerprints() -> dict[str, Any]:
    found = {}
    for name, shape in NETWORKS.items():
        torch.manual_seed(3)
        network = create_model(name, 10)
        answers = {"answers": teacher_fingerprint(network, shape)["answers"]}
        found[name] = student_fingerprint(network, shape) | answers
    torch.manual_seed(3)
    dropping = nn.Sequential(*TinyNet(dropout=0.9).low, nn.Dropout2d(0.5), nn.Flatten(), nn.LazyLinear(3))
    dropping(torch.zeros(2, *SHAPE))
    return {**found, "dropping": student_fingerprint(dropping, SHAPE)}


@pytest.mark.whole
def test_another_processor_answers_the_same() -> None:
    """One without vector instructions, imitated: rounding is far below what tells two networks apart."""
    code = "import json, torch; torch.set_num_threads(1); from test_fingerprint import fingerprints; "
    old = {
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(json.dumps(fingerprints()))"],
        env={**os.environ, **old},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads(done.stdout), fingerprints()
    for name, known in ours.items():
        assert same(known, theirs[name])
        for part in known.keys() - {"weights"}:
            one, other = torch.tensor(known[part]), torch.tensor(theirs[name][part])
            assert float((one - other).norm() / one.norm()) < NEAR / 10
