"""The weighted sum of a method's losses, and what one step gives of it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from eyeline.errors import InputError
from eyeline.losses import Loss, Target
from eyeline.objective.method import Method, Term, joined_name, terms_of
from eyeline.objective.schedules import loss_rates
from eyeline.observe import Observation, Observer, Part


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

    method: dict[str, Term]
    """Its terms by name, in the order in which they are computed."""
    active: list[str]
    """The terms whose weight is not 0 now, by their own schedule: no other is computed."""
    factors: Tensor
    first_losses: Tensor
    last_losses: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = terms_of(method)
        self.losses = nn.ModuleDict({name: term.build() for name, term in self.method.items()})
        weights = {name: term.weight for name, term in self.method.items()}
        self._balanced = [n for n, w in weights.items() if w.schedule == "loss_rate" and w.value]
        # of the terms that see less than is observed
        self._student_parts: dict[str, Part] = {}
        self.teacher_parts: dict[str, Part] = {}
        # a tensor: a weight that changes is then no new graph for torch.compile and no host transfer a step
        self.register_buffer("factors", torch.zeros(len(weights)), persistent=False)
        # mean losses of the last epoch, and of the first one in which they were not 0; 0 until there are any
        self.register_buffer("first_losses", torch.zeros(len(weights)))
        self.register_buffer("last_losses", torch.zeros(len(weights)))
        self.set_progress(0, 1)

    def set_progress(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> None:
        """Set the weights for ``epoch`` (from 0) of ``epochs``."""
        terms = list(self.method.values())
        values = [term.weight.at(epoch, epochs, learning_rate_factor) for term in terms]
        self.active = self.active_in(epoch, epochs, learning_rate_factor)
        factors = torch.tensor(values, dtype=torch.float64)
        balanced = [i for i, term in enumerate(terms) if term.name in self._balanced]
        if balanced:
            names = [terms[i].name for i in balanced]
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
        self.last_losses.copy_(torch.tensor([losses.get(name, 0.0) for name in self.method]))
        self.first_losses.copy_(torch.where(self.first_losses == 0, self.last_losses, self.first_losses))

    def active_in(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> list[str]:
        """The terms whose weight in ``epoch`` (from 0) of ``epochs`` is not 0; no other is computed."""
        return [n for n, t in self.method.items() if t.weight.at(epoch, epochs, learning_rate_factor)]

    @property
    def name(self) -> str:
        """The short string of the method."""
        return joined_name(self.method)

    @property
    def needs_teacher(self) -> bool:
        return bool(self.targeted)

    def needs(self, what: str, of_teacher: bool = False, now: bool = False) -> bool:
        """Whether some loss (``now``: whose weight is not 0 at present) needs ``what`` observed (see
        ``Loss.needs``), of the teacher as well."""
        losses = [loss for name, loss in self._losses().items() if name in self.active or not now]
        return any(what in loss.needs and (loss.needs_teacher or not of_teacher) for loss in losses)

    def looking_at(self, *what: str) -> list[str]:
        """The terms that need some of it observed."""
        return [name for name, loss in self._losses().items() if not loss.needs.isdisjoint(what)]

    def setup(
        self, student: Observer, teacher: Observer | None, layers: Mapping[str, Sequence[tuple[str, str]]]
    ) -> None:
        """Let the losses make their learnable parts for what is observed of these networks.

        ``layers``: (student's, teacher's) of each term that looks at some. Every loss sees its own alone.
        """
        for name, loss in self._losses().items():
            ours, theirs = student, teacher
            if name in layers:
                before = "pre_activations" in loss.needs
                if part := student.part([left for left, _ in layers[name]], before):
                    self._student_parts[name], ours = part, student.only(part)
                if teacher and (part := teacher.part([right for _, right in layers[name]], before)):
                    self.teacher_parts[name], theirs = part, teacher.only(part)
            loss.setup(ours, theirs)

    @property
    def targeted(self) -> dict[str, Loss]:
        """The losses that need a target of the teacher."""
        return {name: loss for name, loss in self._losses().items() if loss.needs_teacher}

    def target(self, teacher: Observation) -> dict[str, Target]:
        """All that must be remembered of the teacher, by loss."""
        return {
            name: loss.target(teacher.only(self.teacher_parts.get(name)))
            for name, loss in self.targeted.items()
            if name in self.active
        }

    def terms(self, student: Observation, targets: Mapping[str, Target], labels: Tensor) -> dict[str, Tensor]:
        """The losses whose weight is not 0 now, unweighted, with their graphs."""
        losses, parts = self._losses(), self._student_parts
        terms = {
            name: losses[name](student.only(parts.get(name)), targets.get(name, {}), labels)
            for name in self.active
        }
        for name, term in terms.items():
            if term.ndim:
                raise InputError(f"loss {name!r} answers {list(term.shape)}; expected a scalar")
        return terms

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
