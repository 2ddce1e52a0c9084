"""Named, weighted losses, and the method that names them."""

from __future__ import annotations

import inspect
import math
from collections import namedtuple
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from eyeline.errors import InputError, unknown
from eyeline.losses import LOSSES, Loss, Target
from eyeline.names import SCHEDULES, named_losses
from eyeline.observe import Observation, Observer

LEAST_SHARE = 0.1
"""Of the cross entropy among balanced losses: unfloored its weight falls to 0.02 late in training."""
Method = str | Mapping[str, Any]


@dataclass(frozen=True)
class Weight:
    """The weight of a term over training.

    ``constant``; ``linear`` and ``cosine``: from ``value`` in the first epoch to 0 in the last; ``step``: in
    proportion to the learning rate; ``loss_rate``: times the share that :func:`loss_rates` gives the term.
    """

    value: float
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if not (isinstance(self.value, int | float) and math.isfinite(self.value) and self.value >= 0):
            raise InputError(f"weight is {self.value!r}; expected a finite number of at least 0")

    def at(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> float:
        """The weight in ``epoch`` (from 0) of ``epochs``; the factor is the learning rate over its peak."""
        done = min(1.0, epoch / (epochs - 1)) if epochs > 1 else 0.0
        match self.schedule:
            case "linear":
                return self.value * (1 - done)
            case "cosine":
                return self.value * (1 + math.cos(math.pi * done)) / 2
            case "step":
                return self.value * learning_rate_factor
        return self.value


def loss_rates(names: Sequence[str], first: Tensor, last: Tensor) -> Tensor:
    """Weights that follow how slowly each loss falls (AFT-KD, Sci. Rep. 13:18369, 2023).

    With ``r_x = L_x / L⁰_x``, the last epoch's mean loss over the first epoch's: ``r_x / mean(r)``, which has
    the mean 1. The weight of ``ce`` is at least 0.1, and the others are scaled so that the mean stays 1.

    Args:
        names: of the losses.
        first, last: mean losses ``[n]``; one whose first is not above 0 counts as one that stays as it is,
            one whose last is below 0 as 0.

    Returns:
        ``[n]``, detached.
    """
    first, last = first.detach(), last.detach()
    rates = torch.where(first > 0, last.clamp(min=0) / torch.where(first > 0, first, 1), 1)
    mean = rates.mean()
    weights = torch.where(mean > 0, rates / torch.where(mean > 0, mean, 1), 1)
    if "ce" in names and len(names) > 1 and weights[names.index("ce")] < LEAST_SHARE:
        others = torch.tensor([name != "ce" for name in names], device=weights.device)
        scale = (len(names) - LEAST_SHARE) / weights[others].sum()
        weights = torch.where(others, weights * scale, LEAST_SHARE)
    return weights


def resolve_method(method: Method) -> dict[str, dict[str, Any]]:
    """Spell a method out: every term with its weight, schedule and parameters.

    ``"at+kd"`` and ``{"at": {}, "kd": {}}`` are the same; a mapping may set ``weight``, ``schedule`` and any
    parameter of the loss. The cross entropy ``ce`` is always there: with weight 1, or ``1 - α`` beside
    knowledge distillation of weight α. Beside ``kd`` the weight of ``at`` falls linearly to 0.

    Raises:
        InputError: an unknown term or parameter, a bad value, or no term at all.

    Example:
        >>> resolve_method("kd")["ce"]["weight"]
        0.1
    """
    given = named_losses(method)
    resolved: dict[str, dict[str, Any]] = {}
    for name in sorted(given, key=list(LOSSES).index):
        options = given[name]
        parameters = _parameters(LOSSES[name])
        options = {**parameters, **options}
        loss = _build(name, options)
        schedule = loss.default_schedule_with_kd if "kd" in given else loss.default_schedule
        resolved[name] = {"weight": loss.default_weight, "schedule": schedule, **options}
        Weight(resolved[name]["weight"], resolved[name]["schedule"])
    # a loss that is balanced is balanced with the cross entropy
    balanced = any(options["schedule"] == "loss_rate" for options in resolved.values())
    cross_entropy = {"weight": 1.0, "schedule": "constant"} | resolved.pop("ce", {})
    if balanced and "schedule" not in given.get("ce", {}):
        cross_entropy["schedule"] = "loss_rate"
    if "kd" in resolved and "weight" not in given.get("ce", {}):
        share = resolved["kd"]["weight"]
        if share > 1:
            raise InputError(
                f"the weight of 'kd' is {share}; expected at most 1, or give the weight of 'ce' as well"
            )
        cross_entropy["weight"] = round(1.0 - share, 12)
    method = {"ce": cross_entropy, **resolved}
    if not any(options["weight"] for options in method.values()):
        raise InputError(f"all weights of method {given!r} are 0; expected one above 0")
    if [options["schedule"] for options in method.values()].count("loss_rate") == 1:
        raise InputError("schedule loss_rate balances losses with one another; expected it on at least two")
    return method


def method_name(method: Method) -> str:
    """The short string of a method, canonical: its terms in one order, ``ce`` only where it stands alone."""
    return "+".join(name for name in resolve_method(method) if name != "ce") or "ce"


def _parameters(loss: type[Loss]) -> dict[str, Any]:
    signature = inspect.signature(loss.__init__)
    return {n: p.default for n, p in signature.parameters.items() if n != "self" and p.default is not p.empty}


def _build(name: str, options: Mapping[str, Any]) -> Loss:
    parameters = {k: v for k, v in options.items() if k not in ("weight", "schedule")}
    try:
        return LOSSES[name](**parameters)
    except TypeError as error:
        raise InputError(f"loss {name!r} with {parameters}: a value of the wrong kind ({error})") from error


@dataclass(eq=False)
class Terms:
    """The unweighted terms of one step by name, their weighted sum, and what the student answered.

    A term whose weight is 0 is not computed, and not among them. Read like a mapping of names to terms; but a
    dataclass, which PyTorch and what wraps its modules take apart and put together again: a mapping would
    lose the sum and the answer there.
    """

    terms: dict[str, Tensor]
    """Name -> scalar, detached."""
    total: Tensor
    """The scalar to differentiate: Σ weight · term."""
    logits: Tensor
    """The student's logits ``[N, K]``."""

    def __getitem__(self, name: str) -> Tensor:
        return self.terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def keys(self) -> KeysView[str]:
        return self.terms.keys()

    def values(self) -> ValuesView[Tensor]:
        return self.terms.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self.terms.items()


class _Apart(namedtuple("_Apart", ("terms", "total", "logits"))):
    @classmethod
    def _make(cls, parts: Iterable[Any]) -> Any:  # type: ignore[override]
        return Terms(*parts)


def apart(terms: Terms) -> Any:
    """Terms as ``nn.DataParallel`` gathers them from its devices (it knows no dataclass): as Terms again."""
    return _Apart(terms.terms, terms.total, terms.logits)


register_dataclass(Terms)  # DistributedDataParallel(static_graph=True) finds the tensors of registered types


class Objective(nn.Module):
    """The weighted sum of a method's losses.

    Args:
        method: a method string or mapping, see :func:`resolve_method`.
    """

    active: list[str]
    """The terms whose weight is not 0 now, by their own schedule: no other is computed."""
    factors: Tensor
    first_losses: Tensor
    last_losses: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = resolve_method(method)
        self.losses = nn.ModuleDict({name: _build(name, options) for name, options in self.method.items()})
        self.weights = {name: Weight(o["weight"], o["schedule"]) for name, o in self.method.items()}
        self._balanced = [n for n, w in self.weights.items() if w.schedule == "loss_rate" and w.value]
        # a tensor: a weight that changes is then no new graph for torch.compile and no host transfer a step
        self.register_buffer("factors", torch.zeros(len(self.weights)), persistent=False)
        # mean losses of the last epoch, and of the first one in which they were not 0; 0 until there are any
        self.register_buffer("first_losses", torch.zeros(len(self.weights)))
        self.register_buffer("last_losses", torch.zeros(len(self.weights)))
        self.set_progress(0, 1)

    def set_progress(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> None:
        """Set the weights for ``epoch`` (from 0) of ``epochs``."""
        values = [weight.at(epoch, epochs, learning_rate_factor) for weight in self.weights.values()]
        self.active = self.active_in(epoch, epochs, learning_rate_factor)
        factors = torch.tensor(values, dtype=torch.float64)
        balanced = [i for i, name in enumerate(self.weights) if name in self._balanced]
        if balanced:
            names = [list(self.weights)[i] for i in balanced]
            rates = loss_rates(names, self.first_losses[balanced], self.last_losses[balanced])
            factors[balanced] *= rates.to(factors)
        self.factors.copy_(factors)

    def end_epoch(self, losses: Mapping[str, float]) -> None:
        """Tell the mean (unweighted) terms of the epoch that ended: schedule ``loss_rate`` follows them.

        Raises:
            InputError: one that is followed is missing.
        """
        missing = [name for name in self._balanced if name not in losses]
        if missing:
            raise InputError(
                f"the mean of {', '.join(missing)} is missing; expected {', '.join(self._balanced)}"
            )
        self.last_losses.copy_(torch.tensor([losses.get(name, 0.0) for name in self.weights]))
        self.first_losses.copy_(torch.where(self.first_losses == 0, self.last_losses, self.first_losses))

    def active_in(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> list[str]:
        """The terms whose weight in ``epoch`` (from 0) of ``epochs`` is not 0; no other is computed."""
        return [n for n, weight in self.weights.items() if weight.at(epoch, epochs, learning_rate_factor)]

    @property
    def needs_teacher(self) -> bool:
        return bool(self.targeted)

    def needs(self, what: str, of_teacher: bool = False, now: bool = False) -> bool:
        """Whether some loss (``now``: whose weight is not 0 at present) needs ``what`` observed (see
        ``Loss.needs``), of the teacher as well."""
        losses = [loss for name, loss in self._losses().items() if name in self.active or not now]
        return any(what in loss.needs and (loss.needs_teacher or not of_teacher) for loss in losses)

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        """Let the losses make their learnable parts for what is observed of these networks."""
        for loss in self._losses().values():
            loss.setup(student, teacher)

    @property
    def targeted(self) -> dict[str, Loss]:
        """The losses that need a target of the teacher."""
        return {name: loss for name, loss in self._losses().items() if loss.needs_teacher}

    def target(self, teacher: Observation) -> dict[str, Target]:
        """All that must be remembered of the teacher, by loss."""
        return {name: loss.target(teacher) for name, loss in self.targeted.items() if name in self.active}

    def terms(self, student: Observation, targets: Mapping[str, Target], labels: Tensor) -> dict[str, Tensor]:
        """The losses whose weight is not 0 now, unweighted, with their graphs."""
        losses = self._losses()
        return {name: losses[name](student, targets.get(name, {}), labels) for name in self.active}

    def forward(self, student: Observation, targets: Mapping[str, Target], labels: Tensor) -> Terms:
        terms, weighted = self.terms(student, targets, labels), []
        for (name, loss), factor in zip(self._losses().items(), self.factors.unbind(), strict=True):
            if name in terms:
                weighted.append(factor * terms[name])
            else:
                # nothing, for which the student and what the loss learns have a gradient of 0, and not none
                empty = [tensor.flatten()[:0].sum() for tensor in (student.logits, *loss.parameters())]
                weighted.append(factor * torch.stack(empty).sum())
        total = torch.stack(weighted).sum()
        return Terms({name: term.detach() for name, term in terms.items()}, total, student.logits)

    def _losses(self) -> dict[str, Loss]:
        return dict(self.losses.items())  # type: ignore[arg-type]
