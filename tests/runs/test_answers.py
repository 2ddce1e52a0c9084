"""The file of answers: what is read is what was written, in as few bytes as it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eyeline.errors import InputError
from eyeline.runs.answers import read_answers, write_answers


@pytest.mark.parametrize(
    ("classes", "kind"),
    [(3, np.uint8), (256, np.uint8), (257, np.int16), (2**15, np.int16), (2**15 + 1, np.int32)],
)
@pytest.mark.parametrize("images", [1, 8, 21])
def test_answers_are_read_as_they_were(tmp_path: Path, classes: int, kind: type, images: int) -> None:
    path = tmp_path / "answers.safetensors"
    labels = torch.randint(classes, (images,), generator=torch.Generator().manual_seed(0))
    labels[-1] = classes - 1
    given = labels.clone()
    given[::3] = (given[::3] + 1) % classes
    write_answers(path, given, labels)
    answered, right = read_answers(path)
    assert torch.equal(answered, given)
    assert right.tolist() == (given == labels).tolist()
    stored = load_file(path)
    assert (stored["classes"].dtype, stored["right"].nbytes) == (kind, -(-images // 8))


def test_answers_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "answers.safetensors"
    with pytest.raises(InputError, match="does not exist; expected the answers"):
        read_answers(path)
    write_answers(path, torch.arange(9), torch.arange(9))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"is damaged \(.*expected the answers"):
        read_answers(path)
