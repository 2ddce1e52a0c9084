"""What every test shares: the plain references are importable, examples are the same in every run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings
from lightning_utilities.core.rank_zero import rank_zero_only

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))  # `from oracles.attention import ...`

from shapes import check_shapes

if not os.environ.get("EYELINE_UNCHECKED"):
    check_shapes()  # before eyeline is imported

from tiny import save_tiny_data

torch.set_num_threads(1)  # the tensors of the tests are tiny: more threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start, too

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test or its fixtures draw, or log, does not depend on the tests before it."""
    torch.manual_seed(0)
    jaxtyping.config.update("jaxtyping_disable", "unchecked" in item.keywords)
    rank_zero_only.rank = 0  # Lightning keeps the rank of the last process that it was told of


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 tiny images to train on, for runs whose data must have a name."""
    return save_tiny_data(tmp_path_factory.mktemp("tiny"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
