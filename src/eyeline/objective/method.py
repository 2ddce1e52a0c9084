"""What a method is, from a string or a mapping."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from eyeline.errors import InputError
from eyeline.losses import LOSSES, Loss
from eyeline.names import named_losses
from eyeline.objective.schedules import Weight

Method = str | Mapping[str, Any]


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
        loss = build(name, options)
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


def build(name: str, options: Mapping[str, Any]) -> Loss:
    parameters = {k: v for k, v in options.items() if k not in ("weight", "schedule")}
    try:
        return LOSSES[name](**parameters)
    except TypeError as error:
        raise InputError(f"loss {name!r} with {parameters}: a value of the wrong kind ({error})") from error
