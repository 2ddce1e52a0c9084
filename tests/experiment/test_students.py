"""Students that are unlike most: each trains, and resumes, as any other."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eyeline
from eyeline.fingerprint import student_fingerprint
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

pytestmark = pytest.mark.whole


class KeepsItsFeature(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        self.last = super().forward(images)
        return self.last


class DrawsFromPython(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (random.random() if self.training else 1)


class WantsEight(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) < 8:
            raise ValueError("too few images")
        return super().forward(images)


def normed() -> nn.Module:
    network = TinyNet()
    network.head = nn.utils.weight_norm(network.head)
    return network


def locked() -> nn.Module:
    network = TinyNet()
    network.lock = threading.Lock()
    return network


def lazy() -> nn.Module:
    network = TinyNet()
    network.head = nn.LazyLinear(3)
    return network


STUDENTS: list[Callable[[], nn.Module]] = [KeepsItsFeature, DrawsFromPython, normed, locked, lazy]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", STUDENTS, ids=lambda make: make.__name__)
def test_it_trains_and_is_known_again(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    given: dict[str, Any] = {**SETTINGS, "epochs": 1, "method": "at+kd", "out": str(tmp_path / "run")}
    run = eyeline.distill(make, tiny_net(2), tiny_data(), **given)
    again = eyeline.distill(make, tiny_net(2), tiny_data(), resume=True, **given)
    assert again.result == run.result
    if make is not DrawsFromPython:
        given["out"] = str(tmp_path / "other")
        other = eyeline.distill(make, tiny_net(2), tiny_data(), **given)
        assert other.result == run.result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [normed, lazy], ids=lambda make: make.__name__)
def test_it_is_studied(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    given: dict[str, Any] = {**SETTINGS, "epochs": 1, "methods": ["at"], "seeds": 1}
    study = eyeline.study(make, tiny_net(2), tiny_data(), str(tmp_path / "study"), **given)
    assert [entry["method"] for entry in study.result["methods"]] == ["ce", "at"]
    assert (tmp_path / "study" / "attention.png").exists()


def test_one_that_takes_more_images_than_are_tried_is_known_by_what_it_can_answer(tmp_path: Path) -> None:
    given: dict[str, Any] = {**SETTINGS, "epochs": 1, "batch_size": 10, "out": str(tmp_path / "run")}
    run = eyeline.train(WantsEight, tiny_data(), **given)
    assert student_fingerprint(WantsEight(), (1, 12, 12))["training"] == []
    assert eyeline.train(WantsEight, tiny_data(), resume=True, **given).result == run.result


def test_loading_a_run_draws_nothing(tmp_path: Path) -> None:
    run = eyeline.train("wrn_10_1", "fashion_mnist_sample", str(tmp_path / "run"), train_size=20, **SHORT)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run.load()
    assert torch.equal(torch.get_rng_state(), before)


SHORT: dict[str, Any] = {"epochs": 1, "progress": False, "accelerator": "cpu"}
