"""What every distillation loss is: a target taken from the teacher, and a comparison with the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from eyeline.observe import Observation, Observer

Target = Mapping[str, Tensor]


class Loss(nn.Module):
    """One term of an objective. The keyword arguments of ``__init__`` are the method's parameters."""

    name: ClassVar[str]
    """The name in a method string."""
    needs: frozenset[str] = frozenset({"logits"})
    """What must be observed of both networks: ``logits`` (over the same classes), ``features``,
    ``pre_activations``, ``class_maps``, ``input_gradient`` (a graph from the logits back to the images)."""
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

    def forward(self, student: Observation, target: Target, labels: Tensor) -> Tensor:
        """Compare; the scalar before any weight."""
        raise NotImplementedError
