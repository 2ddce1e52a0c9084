"""What a method is, from a string or a mapping."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from eyeline.errors import InputError
from eyeline.losses import LOSSES, Loss
from eyeline.names import OPTIONS, named_terms
from eyeline.objective.schedules import Weight

Method = str | Mapping[str, Any]


@dataclass(frozen=True)
class Term:
    """One loss of a method."""

    name: str
    """The user's, by default that of the loss."""
    loss: str
    """Of which type, a name in ``LOSSES``."""
    layers: str | Sequence[str] | None
    """``"auto"`` or names; none: those of the Distiller."""
    weight: Weight
    parameters: Mapping[str, Any]
    """Of the loss: all of them."""

    def build(self) -> Loss:
        """A loss of its own."""
        try:
            return LOSSES[self.loss](**self.parameters)
        except TypeError as error:
            raise InputError(
                f"loss {self.loss!r} with {dict(self.parameters)}: a value of the wrong kind ({error})"
            ) from error

    @property
    def options(self) -> dict[str, Any]:
        """What a mapping says of it."""
        options: dict[str, Any] = {} if self.loss == self.name else {"loss": self.loss}
        if self.layers is not None:
            options["layers"] = self.layers
        return {**options, "weight": self.weight.value, "schedule": self.weight.schedule, **self.parameters}


def terms_of(method: Method) -> dict[str, Term]:
    """The terms of a method by name, see :func:`resolve_method`."""
    given = named_terms(method)
    order, losses = list(LOSSES), {name: options.get("loss", name) for name, options in given.items()}
    terms = {
        name: _term(name, losses[name], given[name], beside_kd="kd" in losses.values())
        for name in sorted(given, key=lambda name: order.index(losses[name]))
    }
    # a loss that is balanced is balanced with the cross entropy
    balanced = any(term.weight.schedule == "loss_rate" for term in terms.values())
    said, cross_entropy = given.get("ce", {}), terms.pop("ce", Term("ce", "ce", None, Weight(1.0), {}))
    weight = cross_entropy.weight
    if balanced and "schedule" not in said:
        weight = replace(weight, schedule="loss_rate")
    distilled = [term for term in terms.values() if term.loss == "kd"]
    if distilled and "weight" not in said:
        share = sum(term.weight.value for term in distilled)
        if share > 1:
            names = " and ".join(repr(term.name) for term in distilled)
            raise InputError(
                f"the weight of {names} is {share}; expected at most 1, or give the weight of 'ce' as well"
            )
        weight = replace(weight, value=round(1.0 - share, 12))
    terms = {"ce": replace(cross_entropy, weight=weight), **terms}
    if not any(term.weight.value for term in terms.values()):
        raise InputError(f"all weights of method {given!r} are 0; expected one above 0")
    if [term.weight.schedule for term in terms.values()].count("loss_rate") == 1:
        raise InputError("schedule loss_rate balances losses with one another; expected it on at least two")
    return terms


def _term(name: str, loss: str, options: Mapping[str, Any], *, beside_kd: bool) -> Term:
    """With what is not given by default."""
    if hasattr(nn.ModuleDict(), name):
        raise InputError(f"a term is called {name!r}, as a part of PyTorch's modules; expected another name")
    signature = inspect.signature(LOSSES[loss].__init__)
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
    own = {n: value for n, value in options.items() if n not in OPTIONS}
    # its weight is known when it is built
    term = Term(name, loss, options.get("layers"), Weight(0.0), {**defaults, **own})
    built = term.build()
    if term.layers is not None and not built.needs & {"features", "pre_activations"}:
        raise InputError(f"term {name!r} looks at no layers; leave layers out (loss {loss!r})")
    schedule = built.default_schedule_with_kd if beside_kd else built.default_schedule
    weight = Weight(options.get("weight", built.default_weight), options.get("schedule", schedule))
    return replace(term, weight=weight)


def resolve_method(method: Method) -> dict[str, dict[str, Any]]:
    """Spell a method out: every term with its weight, schedule and parameters.

    ``"at+kd"`` and ``{"at": {}, "kd": {}}`` are the same; a mapping may set ``weight``, ``schedule`` and any
    parameter of the loss. A term has the name of its loss, or one of the user's and says which ``loss`` it
    is; ``layers`` are those that it alone looks at. The cross entropy ``ce`` is always there: with weight 1,
    or ``1 - α`` beside knowledge distillation of weight α. Beside ``kd`` the weight of ``at`` falls linearly
    to 0.

    Raises:
        InputError: an unknown term or parameter, a bad value, or no term at all.

    Example:
        >>> resolve_method("kd")["ce"]["weight"]
        0.1
        >>> resolve_method({"low": {"loss": "at", "layers": ["layer1"]}})["low"]["layers"]
        ['layer1']
    """
    return {name: term.options for name, term in terms_of(method).items()}


def method_name(method: Method) -> str:
    """The short string of a method, canonical: its terms in one order, ``ce`` only where it stands alone."""
    return joined_name(terms_of(method))


def joined_name(terms: Mapping[str, Term]) -> str:
    """As :func:`method_name`, of a method's terms."""
    return "+".join(name for name in terms if name != "ce") or "ce"
