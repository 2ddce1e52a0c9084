"""Random draws that depend on what seeds them alone: hashes of whole numbers, exact on every device, and
torch's global random state, seeded for a device alone and left as it was."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(*numbers: int) -> int:
    """Hash whole numbers into 64 bits (the finaliser of splitmix64, Steele et al. 2014, chained)."""
    state = 0
    for number in numbers:
        state = (state + number + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _MIX1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX2) & _MASK
        state ^= state >> 31
    return state


def random_bits(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """``mix(seed, epoch, index)`` for every index: ``[B]`` int64 -> ``[B]`` int64 of 64 random bits each."""
    state = indices + _signed(mix(seed, epoch) + _GOLDEN)
    state = (state ^ _shifted(state, 30)) * _signed(_MIX1)
    state = (state ^ _shifted(state, 27)) * _signed(_MIX2)
    return state ^ _shifted(state, 31)


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def choice(bits: Tensor, lowest: int, choices: int) -> Tensor:
    """A number below ``choices`` from the 20 bits that start at ``lowest``."""
    return (((bits >> lowest) & 0xFFFFF) * choices) >> 20


@functools.lru_cache(maxsize=4)  # of this epoch and of the next, which a loader prepares
def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """The order in which an epoch visits its samples: a permutation of ``range(length)``."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, 0x6F72646572) >> 1)
    return torch.randperm(length, generator=generator)


def seed_draws(seed: int, device: torch.device = CPU) -> None:
    """Seed what is drawn on the CPU and on ``device``, as ``torch.manual_seed`` would.

    That seeds all devices, and before CUDA's first use keeps every seed, with its call's stack, until then.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def draws_apart(*devices: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave the random state of the CPU and of ``devices`` as it is; what is drawn meanwhile depends on
    ``seed``, if one is given."""
    others = [(torch.get_device_module(d), d) for d in devices if d.type not in ("cpu", "meta")]
    states = [module.get_rng_state(device) for module, device in others]
    try:
        # without a list torch takes all GPUs of the machine, and warns
        with torch.random.fork_rng([]):
            if seed is not None:
                for device in devices or (CPU,):
                    seed_draws(seed, device)
            yield
    finally:
        for (module, device), state in zip(others, states, strict=True):
            module.set_rng_state(state, device)
