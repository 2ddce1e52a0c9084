"""A student, a teacher and an objective: from images and labels to named losses. Knows no engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyeline.errors import InputError
from eyeline.losses import Loss, Target
from eyeline.losses.base import check_labels
from eyeline.objective.method import Method
from eyeline.objective.terms import Objective, Terms, apart
from eyeline.observe import Observation, Observer, Part, Probe, named_pairs, pair_layers, shared_input_shape


class Distiller(nn.Module):
    """Computes what a student should learn from its teacher; use it in any training loop.

    Args:
        student: maps images ``[N, C, H, W]`` to logits ``[N, K]``.
        teacher: likewise; frozen: it is put in evaluation mode and stays there, its parameters require no
            gradient, and its statistics never move. May be ``None`` for a method that needs none (``"ce"``).
        method: ``"kd"``, ``"at"``, ``"at+kd"``, ... or a mapping with every parameter
            (:func:`eyeline.objective.method.resolve_method`).
        layers: ``"auto"`` (found and paired by resolution), or names: ``"layer3"`` for both networks,
            ``"block2:layer3"`` for the student's and the teacher's. A term of the method may have its own.
        input_shape: ``(C, H, W)`` of the images, where it cannot be told from the models.
        probes: of the student and the teacher, or of networks that they are copies of, where they were made.

    ``layers`` tells the names of each term that looks at some, as (student's, teacher's).

    ``state_dict()`` holds the student and what the losses learn, not the teacher, which never moves;
    ``load_state_dict`` takes just that.

    Raises:
        InputError: unknown method or layer, no teacher for a method that needs one, a network that does not
            answer logits ``[N, K]``, different numbers of classes where logits are compared, or networks with
            no resolution in common.

    Example:
        >>> distiller = Distiller(student, teacher, method="at+kd")
        >>> optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1)
        >>> for images, labels in loader:
        ...     terms = distiller(images, labels)   # {"ce": ..., "kd": ..., "at": ...}, unweighted
        ...     optimizer.zero_grad()
        ...     terms.total.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: Method = "at+kd",
        layers: str | Sequence[str] = "auto",
        input_shape: tuple[int, int, int] | None = None,
        *,
        probes: tuple[Probe | None, Probe | None] = (None, None),
    ) -> None:
        super().__init__()
        _check_networks(student, teacher)
        self.objective = Objective(method)
        if teacher is None and self.objective.needs_teacher:
            raise InputError(f"method {method!r} needs a teacher; none was given")
        self.student = student
        self.teacher = teacher if self.objective.needs_teacher else None
        if self.teacher is not None and input_shape is None:
            input_shape = shared_input_shape(student, self.teacher)
        self.input_shape = input_shape
        # of a network that learns from labels alone nothing need be known
        student_probe, teacher_probe = probes[0], None
        if self.teacher is not None:
            teacher_probe = probes[1] or Probe(self.teacher, input_shape)
        looks = any(map(self.objective.needs, ("features", "pre_activations", "class_maps")))
        if self.teacher is not None or layers != "auto" or looks:
            student_probe = student_probe or Probe(student, input_shape)
        if student_probe is not None and teacher_probe is not None:
            same = self.objective.needs("logits", of_teacher=True)
            _check_answers(student_probe.answer, teacher_probe.answer, same_classes=same)
        self.layers = self._layers(layers, student_probe, teacher_probe)
        self.observe_teacher = (
            None if self.teacher is None else self._observer(self.teacher, "teacher", teacher_probe)
        )
        try:
            self.observe_student = self._observer(student, "student", student_probe)
            try:
                self.objective.setup(self.observe_student, self.observe_teacher, self.layers)
            except BaseException:
                self.observe_student.close()
                raise
        except BaseException:
            if self.observe_teacher is not None:
                self.observe_teacher.close()
            raise
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
        self.register_state_dict_post_hook(_leave_out_teacher)
        self.register_load_state_dict_pre_hook(_keep_teacher)

    def _layers(
        self, layers: str | Sequence[str], student: Probe | None, teacher: Probe | None
    ) -> dict[str, list[tuple[str, str]]]:
        """Names of the (student's, teacher's) layers of each term that looks at some."""
        if layers != "auto":
            _paired(layers, student, teacher)  # a mistake in them shows, also where no term looks
        method, looking = self.objective.method, self.objective.looking_at("features", "pre_activations")
        return {name: _paired(method[name].layers or layers, student, teacher) for name in looking}

    def _observer(
        self, network: nn.Module, who: Literal["student", "teacher"], probe: Probe | None
    ) -> Observer:
        """At the layers of all terms."""
        of = 0 if who == "student" else 1
        activated = self.objective.looking_at("pre_activations")
        return Observer(
            network,
            list(dict.fromkeys(pair[of] for pairs in self.layers.values() for pair in pairs)),
            self.input_shape,
            pre_activations={pair[of] for term in activated for pair in self.layers[term]},
            class_maps=self.objective.needs("class_maps"),
            probe=probe,
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of the observed layers: (student's, teacher's), in the order in which terms mention them."""
        if self.observe_teacher is None:
            return []
        return list(dict.fromkeys(pair for pairs in self.layers.values() for pair in pairs))

    def close(self) -> None:
        """Take the hooks off both networks; leaving a ``with`` does it too."""
        self.observe_student.close()
        if self.observe_teacher is not None:
            self.observe_teacher.close()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_progress(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> None:
        """Tell the schedules of the weights where training is: ``epoch`` (from 0) of ``epochs``."""
        self.objective.set_progress(epoch, epochs, learning_rate_factor)

    def end_epoch(self, losses: Mapping[str, float]) -> None:
        """Tell the mean terms of the epoch that ended, which weights of schedule ``loss_rate`` follow."""
        self.objective.end_epoch(losses)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters of the student and the learnable parts of the losses."""
        return [p for part in (self.student, self.objective) for p in part.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> Distiller:
        """Set the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def target(
        self, images: Tensor, labels: Tensor | None = None, only: Collection[str] | None = None
    ) -> Mapping[str, Target]:
        """What the losses need of the teacher for ``images`` ``[N, C, H, W]``: detached, dimension 0 is N.

        By default of those whose weight is not 0 now; ``only``: of those that are named.

        Methods that differentiate the teacher's loss need the ``labels`` ``[N]`` as well.
        """
        names = self.objective.active if only is None else only
        if self.observe_teacher is None or not self.objective.targeted.keys() & set(names):
            return {}
        assert self.teacher is not None
        if any(module.training for module in self.teacher.modules()):
            self.teacher.eval()
        losses, parts = self.objective.targeted, self.objective.teacher_parts
        return ask_teacher(self.observe_teacher, images, labels, losses, parts, names)

    def forward(self, images: Tensor, labels: Tensor, targets: Mapping[str, Target] | None = None) -> Terms:
        """The losses of one batch.

        Args:
            images: ``[N, C, H, W]``, the same view for student and teacher.
            labels: ``[N]``, int64.
            targets: remembered from :meth:`target` for this very view; the teacher is asked for those of the
                losses that are not given, and does not run if all are.

        Raises:
            InputError: the labels are no classes (their values are looked at on a CPU only), or an observed
                layer did not run, or was overwritten.

        Under ``nn.DataParallel`` every scalar is a value a device: differentiate ``terms.total.mean()``.
        """
        terms = self.objective(*self.observe(images, labels, targets), labels)
        return apart(terms) if getattr(self, "_is_replica", False) else terms

    def observe(
        self, images: Tensor, labels: Tensor, targets: Mapping[str, Target] | None = None
    ) -> tuple[Observation, Mapping[str, Target]]:
        """What the student shows of a batch, and what the teacher does: arguments as for a call."""
        if getattr(self, "_is_replica", False):  # of nn.DataParallel, with the observers of the original
            self.observe_student = self.observe_student.of_replica(self.student)
            if self.observe_teacher is not None:
                assert self.teacher is not None
                self.observe_teacher = self.observe_teacher.of_replica(self.teacher)
        check_labels(labels, len(images))
        targets = targets or {}
        active = self.objective.active
        lacking = [name for name in self.objective.targeted if name in active and name not in targets]
        if lacking:
            targets = {**targets, **self.target(images, labels, lacking)}
        if self.objective.needs("input_gradient", now=True):
            images = images.detach().requires_grad_()
        return self.observe_student(images, labels), targets


def _leave_out_teacher(distiller: Distiller, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def _keep_teacher(
    distiller: Distiller,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    unexpected += [name for name in state if name.startswith(f"{prefix}teacher.")]
    if distiller.teacher is not None:
        state.update(distiller.teacher.state_dict(prefix=f"{prefix}teacher."))


def ask_teacher(
    observe: Observer,
    images: Tensor,
    labels: Tensor | None,
    losses: Mapping[str, Loss],
    parts: Mapping[str, Part | None],
    only: Collection[str],
) -> dict[str, Target]:
    """The targets of ``losses`` (``only`` those), each of its part of the layers, from one forward pass."""
    asked = {name: loss for name, loss in losses.items() if name in only}
    differentiated = any("input_gradient" in loss.needs for loss in asked.values())
    with torch.set_grad_enabled(differentiated):
        if differentiated:
            images = images.detach().requires_grad_()
        seen = observe(images, labels)
        return {name: loss.target(seen.only(parts.get(name))) for name, loss in asked.items()}


def _paired(
    layers: str | Sequence[str], student: Probe | None, teacher: Probe | None
) -> list[tuple[str, str]]:
    """Names of (student's, teacher's) layers, from ``"auto"`` or names; without a teacher twice the same."""
    if layers == "auto":
        assert student is not None
        pairs = pair_layers(student.layers, student.layers if teacher is None else teacher.layers)
        return [(left.name, right.name) for left, right in pairs]
    ours, theirs = named_pairs(layers.split(",") if isinstance(layers, str) else layers)
    if not ours:
        raise InputError(f"layers is {layers!r}; expected 'auto' or names")
    for probe, names in ((student, ours), (teacher, theirs)):
        if probe is not None:
            probe.named(names)
    return list(zip(ours, theirs, strict=True))


def _check_networks(student: nn.Module, teacher: nn.Module | None) -> None:
    for who, network in (("student", student), ("teacher", teacher)):
        if not isinstance(network, nn.Module | None):
            raise InputError(
                f"{who} is {network!r}; expected an nn.Module, as eyeline.create_model(NAME) and "
                "eyeline.load(RUN) make"
            )
    if teacher is student:
        raise InputError("student and teacher are the same object; expected two networks (copy.deepcopy one)")


def _check_answers(student: tuple[int, ...], teacher: tuple[int, ...], *, same_classes: bool) -> None:
    for who, answer in (("student", student), ("teacher", teacher)):
        if len(answer) != 1:
            shown = ["N", *answer] if answer else "no tensor"
            raise InputError(f"the {who} answers {shown}; expected logits [N, K] in one tensor")
    if same_classes and student != teacher:
        raise InputError(
            f"the student answers {student[0]} classes, the teacher {teacher[0]}; "
            "a method that compares classes (kd, gat, cam, cat) needs the same in both ('at' does not)"
        )
