"""What a target is called in a memory."""

from __future__ import annotations

import hashlib
import json

from eyeline.distiller import Distiller
from eyeline.losses.base import own_code


def target_names(distiller: Distiller) -> dict[str, str]:
    """Term -> name of its target in a memory, for those that count and whose target can be remembered.

    The name ends in a hash of what the target depends on: the loss (of the user's its code), its parameters
    (without its ``not_in_target``), and the teacher's layers that it looks at. Terms with one target share
    its name.
    """
    names = {}
    for name, loss in distiller.objective.targeted.items():
        term = distiller.objective.method[name]
        if not (loss.remembers and term.weight.value):
            continue
        options = {k: v for k, v in term.parameters.items() if k not in loss.not_in_target}
        # 2 and 2.0 are one value
        options = {k: float(v) if type(v) is int else v for k, v in options.items()}
        layers = [theirs for _, theirs in distiller.layers.get(name, [])]
        code = own_code(type(loss))
        depends = json.dumps(
            [term.loss, options, layers, *filter(None, [code])], sort_keys=True, default=repr
        )
        names[name] = f"{term.loss}-{hashlib.sha256(depends.encode()).hexdigest()[:8]}"
    return names
