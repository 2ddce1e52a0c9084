"""The errors a user sees: what was given, what was expected, the nearest valid choice."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """The caller gave something that cannot work. Raised before any training starts."""


class TrainingStopped(RuntimeError):
    """Training cannot go on: a loss is not finite, or the disk is full. The last good checkpoint is kept."""


class Diverged(TrainingStopped):
    """A loss or a weight is not finite."""


_SHORT = {
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "batch": "batch_size"},
    **{"T": "temperature", "t": "temperature", "tau": "temperature", "alpha": "weight", "beta": "weight"},
    **{"p": "exponent", "device": "accelerator", "gpus": "devices", "amp": "precision", "name": "out"},
}
"""What the field calls some arguments for short."""


def nearest(given: object, choices: Iterable[str]) -> str | None:
    """The choice that was probably meant."""
    names = list(choices)
    if _SHORT.get(str(given)) in names:
        return _SHORT[str(given)]
    return next(iter(get_close_matches(str(given), names, n=1, cutoff=0.5)), None)


def unknown(
    kind: str, given: object, choices: Iterable[str], *, listed: Iterable[str] | None = None
) -> InputError:
    """Build the error for a name that is not among ``choices``, with the nearest one suggested.

    ``listed``: those worth showing, where there are very many; by default the first 30 in order.
    """
    names = sorted(choices)
    near = nearest(given, names)
    hint = f"; did you mean {near!r}?" if near else ""
    shown = names[:30] if listed is None else list(listed)
    listing = ", ".join([*shown, *(["..."] if len(names) > len(shown) else [])])
    return InputError(f"unknown {kind} {given!r}{hint} ({listing})")
