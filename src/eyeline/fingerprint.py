"""By what a network is known again: its weights, and what it answers to noise, on whatever processor."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eyeline.hashing import weights_hash
from eyeline.observe.passes import buffers_kept, evaluation_mode, undisturbed
from eyeline.randomness import draws_apart

_NUMBERS = 8


def teacher_fingerprint(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of a network with weights from a file: their hash, and its answers, for what is no weight."""

    def answers(asked: nn.Module) -> list[float]:
        with undisturbed(asked):
            return _numbers(asked(_noise(1, shape)))

    return {"weights": weights_hash(network), "answers": _if_it_can(network, answers)}


def student_fingerprint(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of a network to be trained: what its weights are like, and its answers in a step of training and after.

    Not their values: those that are drawn differ by rounding from processor to processor.
    """
    digest = hashlib.sha256()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {tensor.requires_grad}\n".encode())
    images = _noise(4, shape)

    def answers(asked: nn.Module) -> list[float]:
        with draws_apart(seed=0), torch.compiler.set_stance("force_eager"), _SameDraws(), torch.no_grad():
            return _numbers(asked(images))

    def training(asked: nn.Module) -> list[float]:
        with evaluation_mode(asked), buffers_kept(asked):
            first = answers(asked.train())
        with evaluation_mode(asked), buffers_kept(asked):
            # not of one that draws from elsewhere than PyTorch
            return first if answers(asked.train()) == first else []

    def after(asked: nn.Module) -> list[float]:
        with evaluation_mode(asked), buffers_kept(asked):
            answers(asked.train())
            return answers(asked.eval())

    told = {"training": _if_it_can(network, training), "after": _if_it_can(network, after)}
    return {"weights": digest.hexdigest(), **told}


def _if_it_can(network: nn.Module, answers: Callable[[nn.Module], list[float]]) -> list[float]:
    """What a network answers on a CPU, for a GPU may round more (TF32); nothing if it cannot: it may take
    more images, another dtype, or a GPU alone."""
    try:
        there = all(t.device.type == "cpu" for t in [*network.parameters(), *network.buffers()])
        return answers(network if there else copy.deepcopy(network).cpu())
    except Exception:  # any way to refuse noise
        return []


def _noise(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def _numbers(answer: Any) -> list[float]:
    """A few numbers in which every value of an answer has a part; none of an answer that is no tensor."""
    if not isinstance(answer, Tensor):
        return []
    values = answer.detach().double().nan_to_num().flatten()
    signs = torch.randint(2, (len(values), _NUMBERS), generator=torch.Generator().manual_seed(1))
    return [float(f"{number:.6g}") for number in (values @ (2.0 * signs - 1).double()).tolist()]


class _SameDraws(TorchDispatchMode):
    """Dropout that draws the same on every processor, as torch's own does not."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kwargs = torch.ops.aten, kwargs or {}
        if getattr(func, "overloadpacket", None) in (aten.bernoulli_, aten.bernoulli):
            given = args[0]
            chance = args[1] if len(args) > 1 else kwargs.get("p", 0.5 if func._schema.is_mutable else given)
            drawn = torch.rand(given.shape, generator=self.generator) < chance
            return given.copy_(drawn) if func._schema.is_mutable else drawn.to(given.dtype)
        return func(*args, **kwargs)
