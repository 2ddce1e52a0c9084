"""torch's global random state: seeded for a device alone, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


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
    """Leave the random state of the CPU and of CUDA ``devices`` as it is; what is drawn meanwhile depends on
    ``seed``, if one is given."""
    # without a list torch takes all devices of the machine, and warns
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        if seed is not None:
            for device in devices or (CPU,):
                seed_draws(seed, device)
        yield
