"""What every distillation loss is: a target taken from the teacher, and a comparison with the student."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from eyeline.errors import InputError, unknown
from eyeline.names import OPTIONS, check_term_name
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Target = Mapping[str, Tensor]
NEEDS = ("logits", "features", "pre_activations", "class_maps", "input_gradient")
"""What a loss may need observed: logits over the same classes; what the layers show; a graph from the logits
back to the images."""


def check_labels(labels: Any, images: int, classes: int | None = None) -> None:
    """Raise InputError unless ``labels`` are a class of each image: ``[N]`` int64, 0 to K-1.

    Their values are looked at on a CPU only; elsewhere the host would have to wait for them.
    """
    expected = f"expected [{images}] int64, a class of each image"
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {type(labels).__name__}; {expected}")
    if labels.shape != (images,):
        soft = "; soft labels are not understood, labels.argmax(1) makes classes of them"
        given = f"labels are {list(labels.shape)} for {images} images; {expected}"
        raise InputError(given + (soft if labels.ndim == 2 and len(labels) == images else ""))
    if labels.dtype != torch.int64:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise InputError(f"labels are {dtype}; {expected} (labels.long() converts them)")
    if classes and images and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= classes:
            raise InputError(
                f"labels are {low} to {high}; expected 0 to {classes - 1}, a class of the logits"
            )


class Loss(nn.Module):
    """One term of an objective. The keyword arguments of ``__init__`` are the method's parameters."""

    name: ClassVar[str]
    """The name in a method string."""
    needs: frozenset[str] = frozenset({"logits"})
    """What must be observed of both networks, some of ``NEEDS``."""
    needs_teacher: ClassVar[bool] = True
    remembers: bool = True
    """Whether the target is a function of the teacher and the view alone, so that it may be remembered: not
    with learnable parts on the teacher's side."""
    not_in_target: ClassVar[frozenset[str]] = frozenset()
    """The parameters of ``__init__`` on which the target does not depend: all their values share a memory."""
    default_schedule: ClassVar[str] = "constant"
    default_schedule_with_kd: ClassVar[str] = "constant"
    """Schedule of the weight when knowledge distillation is on as well."""

    @property
    def default_weight(self) -> float:
        return 1.0

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        """Make the learnable parts, for the paired ``layers`` and the ``head`` of the networks. Called once.

        Raises:
            InputError: the method cannot work with these networks.
        """

    def target(self, teacher: Observation) -> Target:
        """Reduce what the teacher showed to what must be remembered: detached, leading dimension N.

        A function of the observation and of the parameters of ``__init__`` alone, or ``remembers`` is False.
        """
        return {}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        """Compare; the scalar before any weight."""
        raise NotImplementedError


AnyLoss = TypeVar("AnyLoss", bound=type[Loss])
LOSSES: dict[str, type[Loss]] = {}
"""By name; the terms of a method are computed in this order."""


def register(loss: AnyLoss) -> AnyLoss:
    """Let methods name this class of loss: ``@register`` above it.

    A class defined again in its place replaces the first, as where a cell of a notebook runs again.

    Raises:
        InputError: the name is another loss's or cannot be one, a parameter has no default or the name of an
            option of every term, or what the loss needs is not observed.
    """
    check_term_name(getattr(loss, "name", None))
    place, known = f"{loss.__module__}.{loss.__qualname__}", LOSSES.get(loss.name)
    if known is not None and f"{known.__module__}.{known.__qualname__}" != place:
        raise InputError(
            f"loss {loss.name!r} of {place} is {known.__module__}.{known.__qualname__} already; "
            "expected another name"
        )
    for parameter in list(inspect.signature(loss.__init__).parameters.values())[1:]:
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if named and (parameter.default is parameter.empty or parameter.name in OPTIONS):
            raise InputError(
                f"parameter {parameter.name!r} of loss {loss.name!r}: expected one with a default, and not "
                f"called {', '.join(OPTIONS)}, which every term has"
            )
        if isinstance(parameter.default, float) and not math.isfinite(parameter.default):
            raise InputError(
                f"parameter {parameter.name!r} of loss {loss.name!r} is {parameter.default} by default; "
                "expected a finite number"
            )
    if not isinstance(loss.needs, frozenset | property):
        raise InputError(f"needs of loss {loss.name!r} is {loss.needs!r}; expected a frozenset")
    for what in loss.needs if isinstance(loss.needs, frozenset) else ():
        if what not in NEEDS:
            raise unknown(f"need of loss {loss.name!r}", what, NEEDS)
    LOSSES[loss.name] = loss
    return loss


def own_code(loss: type[Loss]) -> str | None:
    """A hash of the code of a user's loss, by which a run or a memory is told of another; None of ours.

    Of what Python made of it, for a class that is defined again in a notebook still has its first source.
    """
    if loss.__module__.partition(".")[0] == "eyeline":
        return None
    ours = [each for each in loss.__mro__ if each.__module__.partition(".")[0] not in ("eyeline", "torch")]
    functions = [f for each in ours for _, f in sorted(vars(each).items()) if inspect.isfunction(f)]
    return hashlib.sha256(repr([_told(f.__code__) for f in functions]).encode()).hexdigest()[:16]


def _told(code: Any) -> Any:
    if not inspect.iscode(code):
        return repr(sorted(map(repr, code)) if isinstance(code, frozenset) else code)
    return code.co_code, code.co_names, [_told(each) for each in code.co_consts]
