"""Five students of five seeds: a step of one after the other, and of all at once as one stacked model."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from eyeline.device import Device, resolved
from eyeline.models import create_model
from eyeline.settings import Settings
from eyeline.training.optimizer import make_optimizer
from measure import Result, interleave

SEEDS, CLASSES = 5, 10


def measure_stacked(student: str, batch: int, side: int, rounds: int, device: str) -> Result:
    """Cross entropy, backward, SGD; ``torch.func`` turns the stacked convolutions into grouped ones."""
    torch.manual_seed(0)
    settings = resolved(Settings.of(accelerator=device, learning_rate=1e-3), files=False)
    place = Device.of(settings)
    networks = [place.place(create_model(student, CLASSES)).train() for _ in range(SEEDS)]
    images = torch.randn(SEEDS, batch, 3, side, side, device=place.torch_device)
    labels = torch.randint(0, CLASSES, (SEEDS, batch), device=place.torch_device)
    batches = [each.contiguous(memory_format=torch.channels_last) for each in images]
    optimizers = [make_optimizer(settings, list(network.parameters())) for network in networks]

    def one_by_one() -> None:
        for network, optimizer, each, label in zip(networks, optimizers, batches, labels, strict=True):
            with place.autocast():
                loss = F.cross_entropy(network(each).float(), label)
            _update(optimizer, loss)

    stackable = [_without_statistics(network) for network in networks]
    skeleton = copy.deepcopy(stackable[0]).to("meta")
    weights, buffers = stack_module_state(stackable)
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    optimizer = make_optimizer(settings, list(weights.values()))

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(skeleton, (weights, buffers), (images,))
        return logits

    def stacked() -> None:
        with place.autocast():
            logits = vmap(answer)(weights, buffers, images)
        # the sum of the seeds' means: each has the gradient that it has alone
        loss = SEEDS * F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        _update(optimizer, loss)

    variants = {"one after the other": one_by_one, "stacked": stacked}
    samples = interleave(variants, rounds, warmup=2, device=device)
    result = Result(f"{SEEDS} seeds of {student}, {side} x {side}, batch {batch}", "s", samples)
    result.ratio("stacked", "one after the other")
    result.notes = [
        "stacked: torch.func.vmap over weights and batches, batch norm without running statistics"
    ]
    return result


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _without_statistics(network: nn.Module) -> nn.Module:
    # vmap refuses the in-place update of running statistics
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network
