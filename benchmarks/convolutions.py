"""What bounds a step: its convolutions alone, forward and backward, in eyeline's format and the plain one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eyeline.models import create_model
from measure import Result, Variant, interleave


def measure_convolutions(name: str, batch: int, side: int, rounds: int, device: str) -> Result:
    """Every convolution of a network on inputs of the sizes that it has there."""
    seen: list[tuple[nn.Conv2d, Tensor]] = []

    def keep(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append((module, inputs[0].detach()))

    network = create_model(name, num_classes=100).to(device)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(keep)
    network(torch.randn(batch, 3, side, side, device=device))
    samples = interleave(
        {
            "bf16, channels_last": _all(seen, torch.bfloat16, torch.channels_last),
            "float32, channels_last": _all(seen, torch.float32, torch.channels_last),
            "float32, contiguous": _all(seen, torch.float32, torch.contiguous_format),
        },
        rounds,
        warmup=2,
        device=device,
    )
    result = Result(f"Convolutions of {name}, forward and backward, batch {batch}", "s", samples)
    result.ratio("float32, contiguous", "bf16, channels_last")
    result.ratio("float32, channels_last", "bf16, channels_last")
    return result


def _all(seen: list[tuple[nn.Conv2d, Tensor]], dtype: torch.dtype, format: torch.memory_format) -> Variant:
    calls = []
    for module, given in seen:
        images = given.to(dtype, memory_format=format).requires_grad_()
        weight = module.weight.detach().to(dtype, memory_format=format).requires_grad_()
        with torch.no_grad():
            answer = torch.conv2d(images, weight, None, module.stride, module.padding)
        calls.append((module, images, weight, torch.randn_like(answer)))

    def run() -> None:
        for module, images, weight, gradient in calls:
            answer = torch.conv2d(images, weight, None, module.stride, module.padding)
            torch.autograd.grad(answer, (images, weight), gradient)

    return run
