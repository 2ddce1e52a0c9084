"""What a target is called in a memory."""

from __future__ import annotations

import hashlib
import json

from eyeline.distiller import Distiller


def target_names(distiller: Distiller) -> dict[str, str]:
    """Loss -> name of its target in a memory, for the losses that count and whose target can be remembered.

    The name ends in a hash of what the target depends on: the loss, its parameters (without its
    ``not_in_target``), and the teacher's observed layers if it needs features.
    """
    names = {}
    for term, loss in distiller.objective.targeted.items():
        if not (loss.remembers and distiller.objective.weights[term].value):
            continue
        left_out = {"weight", "schedule", *loss.not_in_target}
        options = {k: v for k, v in distiller.objective.method[term].items() if k not in left_out}
        # 2 and 2.0 are one value
        options = {k: float(v) if type(v) is int else v for k, v in options.items()}
        of_layers = "features" in loss.needs or "pre_activations" in loss.needs
        layers = [theirs for _, theirs in distiller.pairs] if of_layers else []
        depends = json.dumps([term, options, layers], sort_keys=True, default=repr)
        names[term] = f"{term}-{hashlib.sha256(depends.encode()).hexdigest()[:8]}"
    return names
