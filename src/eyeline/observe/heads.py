"""The classifier behind class maps and the activations behind pre-activations, found by their values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eyeline.observe.layer import Head, Place
from eyeline.observe.passes import Call

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Hardswish),
)


def pre_activations(calls: Sequence[Call]) -> dict[str, Place]:
    """By layer, where the feature before its activation function is seen, for those that have such a place.

    Where a block ends in an activation module that is what this module is given, after the residual sum.
    A layer that answers signed values (a pre-activation network, or a layer that ends in batch norm) is its
    own pre-activation.
    """
    activations = [c for c in calls if isinstance(c.module, ACTIVATIONS)]
    places = {}
    for call in calls:
        if call.shape is None or call.seen is None:
            continue
        # not one behind the layer that works in place on its answer
        end = next((c for c in activations if c.output is call.output and c.order <= call.order), None)
        if end is not None:
            places[call.name] = Place(end.name, "input", end.given_overwritten)
        elif float(call.seen.min()) < 0 and not call.activated:
            places[call.name] = Place(call.name, "output", call.overwritten)
    return places


def linear_head(calls: Sequence[Call]) -> Head | None:
    """The classifier and the features that it averages, if there is such a head.

    The classifier is a linear layer whose answer is the logits, or a 1x1 convolution whose average is; the
    features are those whose average over H and W the linear layer is given. Both are checked by number, so
    the mean of a class map plus the bias is the logit for every head that is found.
    """
    logits = next(c for c in calls if c.name == "").output
    if not (isinstance(logits, Tensor) and logits.ndim == 2):
        return None
    for call in reversed(calls):
        if not (_is_linear(call.module) and isinstance(call.seen, Tensor) and call.given is not None):
            continue
        if call.seen.ndim == 4 and call.seen[0, 0].numel() > 1:
            if _same(call.seen.mean((2, 3)), logits):
                place = Place(call.name, "input", call.given_overwritten)
                return Head(call.name, place, (logits.shape[1], call.seen.shape[2], call.seen.shape[3]))
        elif _same(call.seen.flatten(1), logits):
            averaged = _averaged(calls, call.given.flatten(1))
            if averaged is not None:
                place, size = averaged
                return Head(call.name, place, (logits.shape[1], *size))
    return None


def _averaged(calls: Sequence[Call], pooled: Tensor) -> tuple[Place, tuple[int, int]] | None:
    """Where the features are seen whose average is ``pooled`` ``[N, C]``, and their height and width."""
    norms = (c.seen for c in calls if isinstance(c.module, nn.modules.batchnorm._NormBase))
    if any(isinstance(norm, Tensor) and _same(norm.flatten(1), pooled) for norm in norms):
        return None  # batch norm behind the pooling: it changes nothing only until it is trained
    for relu in (False, True):
        for call in reversed(calls):
            for side, tensor in (("output", call.seen), ("input", call.given)):
                if not (isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor[0, 0].numel() > 1):
                    continue
                if _same((tensor.relu() if relu else tensor).mean((2, 3)), pooled):
                    changed = call.overwritten if side == "output" else call.given_overwritten
                    place = Place(call.name, side, changed, relu)  # type: ignore[arg-type]
                    return place, (tensor.shape[2], tensor.shape[3])
    return None


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, or a convolution that is one at every position."""
    if isinstance(module, nn.Conv2d):
        return (module.kernel_size, module.stride, module.padding, module.groups) == (
            (1, 1),
            (1, 1),
            (0, 0),
            1,
        )
    return isinstance(module, nn.Linear)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether both are equal but for rounding, whatever their size."""
    if a.shape != b.shape:
        return False
    tolerance = max(1e-3, *(8 * torch.finfo(t.dtype).eps for t in (a, b)))
    return torch.allclose(a.float(), b.float(), rtol=tolerance, atol=0.1 * tolerance * float(b.abs().max()))
