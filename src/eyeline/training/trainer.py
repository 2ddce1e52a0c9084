"""The training loop, on Lightning Fabric.

The state of a run is the weights, the optimizer and the number of the step: order, views, learning rate and
random draws are functions of the step. So a run resumes from any step exactly where it was.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from eyeline.console import Figures, console, show_progress
from eyeline.data.batches import Batch, TrainingStream, evaluation_batches
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import ImageData, Split
from eyeline.device import Device, fabric_is_silent
from eyeline.distiller import Distiller
from eyeline.doctor import idle_parameters
from eyeline.errors import Diverged, InputError, TrainingStopped
from eyeline.losses import Target
from eyeline.memory.encoding import Encoded
from eyeline.memory.folder import Memory
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.randomness import draws_apart, mix, seed_draws
from eyeline.runs.folder import RunFolder
from eyeline.settings import Settings
from eyeline.training.allocator import keep_freed_memory
from eyeline.training.compiling import (
    compile_parts,
    losses_part,
    recompiling,
    restored,
    student_part,
    teacher_part,
)
from eyeline.training.evaluation import evaluate
from eyeline.training.optimizer import learning_rate_factor, make_optimizer
from eyeline.training.signals import interruptible
from eyeline.training.state import NEVER, Part, RunState

_SEEN_WITHIN = 200
"""Steps until a loss that is not finite is seen at the latest: to look, the host waits for the device."""


class _Step(nn.Module):
    """What runs on every device: from a batch to the loss, and the figures of the step in one tensor.

    The figures are sums over the images of the batch: loss, correct answers, terms, and the number of images.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        # not an argument of forward: Fabric would turn bf16 into float32
        self.targets: Mapping[str, Target] = {}

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        terms = self.distiller(images, labels, self.targets)
        count = float(len(labels))
        correct = (terms.logits.detach().argmax(1) == labels).sum()
        total = terms.total.detach().double()
        nothing = torch.zeros_like(total)  # for a term that is not computed; no row of metrics shows it
        each = [terms[n].double() if n in terms else nothing for n in self.distiller.objective.method]
        means = torch.stack([total, *each])
        figures = torch.cat(
            [means[:1] * count, correct[None], means[1:] * count, torch.full_like(means[:1], count)]
        )
        return terms.total, figures


@fabric_is_silent()
def fit(
    distiller: Distiller,
    data: ImageData,
    settings: Settings,
    folder: RunFolder,
    *,
    memory: Memory | None = None,
    label: str = "",
) -> Device:
    """Train a distiller's student with resolved settings; go on from the folder's checkpoint if there is one.

    Writes ``metrics.csv``, ``tensorboard/`` and ``last.ckpt``. Returns where the training ran. With a
    ``memory`` the teacher is asked, at the start of an epoch, for what is not stored of its view.

    Raises:
        InputError: the folder's checkpoint is damaged or of another network.
        TrainingStopped: a loss became NaN or infinite (names the term and the step), or the disk is full.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    curves = TensorBoardLogger(folder.path, name="", version="tensorboard")
    device = Device.of(settings, curves)
    if device.fabric.world_size > 1 and _has_idle_parameters(distiller, device):
        device = Device.of(settings, curves, idle=True)
    device.fabric.launch()
    try:
        with (
            draws_apart(device.torch_device),
            restored(distiller.student, distiller.teacher, distiller.objective),
        ):
            _Trainer(distiller, data, settings, folder, memory, label, device).run()
    except BaseException:
        _end_other_processes(device.fabric)
        raise
    finally:
        for logger in device.fabric.loggers:
            logger.finalize("")
    return device


def _has_idle_parameters(distiller: Distiller, device: Device) -> bool:
    """Whether a step gives some parameter no gradient, for which several processes would wait for ever."""
    if distiller.input_shape is None:
        return True
    device.place(distiller)
    images = torch.randn(2, *distiller.input_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, dtype=torch.int64, device=device.torch_device)
    return bool(idle_parameters(distiller, images.to(device.torch_device), labels))


class _Trainer:
    """The loop of one run, and what it keeps between steps."""

    def __init__(
        self,
        distiller: Distiller,
        data: ImageData,
        settings: Settings,
        folder: RunFolder,
        memory: Memory | None,
        label: str,
        device: Device,
    ) -> None:
        self.distiller, self.data, self.settings, self.folder = distiller, data, settings, folder
        self.memory, self.label, self.device, self.fabric = memory, label, device, device.fabric
        if self.fabric.device.type == "cpu":
            keep_freed_memory()
        device.place(distiller)
        self.stream = training_stream(data, settings, device)
        self.epoch_steps = self.stream.steps_per_epoch
        self.total = settings.epochs * self.epoch_steps
        self.remembered = {} if memory is None else target_names(distiller)  # loss -> name of its target
        self.wanted = targets_by_view([distiller], settings)
        self.targets: dict[str, Encoded] = {}
        self.view: int | None = None  # whose targets these are
        self.state, self.compiled = self._prepared()

    # --- before the first step ------------------------------------------------------------------------------

    def _prepared(self) -> tuple[RunState, list[str]]:
        """Networks and optimizer as they are at the first step, and what runs compiled."""
        checkpoint = self.folder.load_checkpoint()
        compiled = self._compiled()
        optimizer = make_optimizer(self.settings, self.distiller.trainable_parameters())
        self.peak = optimizer.param_groups[0]["lr"]
        self.one_step = _Step(self.distiller)
        self.module, self.optimizer = self.fabric.setup(self.one_step, optimizer)
        self.module.train()
        self.names = ["loss", "train_accuracy", *self.distiller.objective.method]
        parts: dict[str, Part] = {
            "student": self.distiller.student,
            "objective": self.distiller.objective,
            "optimizer": self.optimizer,
        }
        state = RunState(parts, self.names, self.fabric.device, rows=self.folder.read_metrics())
        try:
            state.resume(checkpoint, first=self.fabric.is_global_zero)
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the checkpoint in {self.folder.path} is of another network or method "
                f"({str(error).splitlines()[0][:100]}); start anew with --overwrite"
            ) from error
        return state, compiled

    def _compiled(self) -> list[str]:
        """Compile what the settings name, or what gains; that is then written into the recipe."""
        asked, settings, fabric = self.total, self.settings, self.fabric
        losses = self.distiller.objective.targeted.values()
        if self.memory is not None and all(loss.remembers for loss in losses):
            asked = len(self.memory.missing(self.wanted)) * self.epoch_steps
        choosing = settings.compile == "auto"
        if choosing and not fabric.is_global_zero:  # all run what the first one chooses
            settings = dataclasses.replace(settings, compile=fabric.broadcast(settings.compile))
        compiled = _compile(
            [self.distiller],
            self.distiller.target,
            settings,
            self.device,
            self.stream,
            asked,
            trained=self.total,
        )
        if choosing and fabric.is_global_zero:
            self.folder.settle(compile=fabric.broadcast(compiled) or "off")
        return compiled

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step."""
        state, every = self.state, self.settings.checkpoint_every or self.epoch_steps
        first = self.fabric.is_global_zero
        with (
            show_progress(self.settings, self.total, state.step, self.label, shown=first) as self.show,
            interruptible(first) as self.interrupted,
            recompiling() if self.compiled else nullcontext(),
        ):
            if state.step % self.epoch_steps:
                self._set_progress()
            state.tick()
            for batch in self.stream.batches(state.step, self.total):
                if state.step % self.epoch_steps == 0:
                    self._set_progress()
                    state.begin_epoch()
                self._step(batch)
                ended = state.step % self.epoch_steps == 0
                kept, seconds = ended or state.step % every == 0, state.seconds
                if kept or state.step % _SEEN_WITHIN == 0:
                    self._check_finite()
                if ended:
                    self._end_epoch()
                self.show(state.step, functools.partial(self._figures, seconds))
                if kept:
                    self._save()
                self._stop_if_interrupted()

    def _set_progress(self) -> None:
        """Tell the weights of the losses which epoch it is."""
        epoch = self.state.step // self.epoch_steps
        factor = learning_rate_factor(self.settings, epoch * self.epoch_steps, self.epoch_steps)
        self.distiller.set_progress(epoch, self.settings.epochs, factor)

    def _step(self, batch: Batch) -> None:
        """One update of the weights."""
        step = self.state.step
        if self.remembered:
            self._recall(batch.view)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * learning_rate_factor(self.settings, step, self.epoch_steps)
        # dropout and the like draw from a seed of the step, not from a state that a checkpoint would need
        seed_draws(mix(self.settings.seed, step, self.fabric.global_rank) >> 1, self.fabric.device)
        loss, values = self.module(batch.images, batch.labels)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.add(values)

    def _recall(self, view: int) -> None:
        """Hand the step what is remembered of its images."""
        if view != self.view:
            assert self.memory is not None
            self.view = view
            teacher = SharedTeacher([self.distiller])
            self.targets = _view(
                self.memory, view, self.wanted[view], teacher, self.stream, self.device, self._asking
            )
        indices = self.stream.indices(self.state.step)[1]  # not the batch's, for which the host would wait
        self.one_step.targets = {
            term: self.targets[name].rows(indices, self.fabric.device).decode()
            for term, name in self.remembered.items()
            if term in self.distiller.objective.active
        }

    def _asking(self, view: int, done: int) -> None:
        """The teacher has answered so many batches of a view."""
        self._stop_if_interrupted()
        if console.is_terminal:
            epoch = f"epoch {self.state.step // self.epoch_steps + 1}/{self.settings.epochs}"
            figures = f"view {view + 1}: asking the teacher {100 * done // self.epoch_steps} %"
            self.show(self.state.step, lambda: (epoch, figures, ""))

    # --- the end of an epoch --------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """The figures of the epoch, as a row of ``metrics.csv``."""
        state, active, seconds = self.state, self.distiller.objective.active, self.state.seconds
        whole = self._summed()
        means = dict(zip(self.names, (whole / whole[-1]).tolist(), strict=False))
        row: dict[str, float] = {"epoch": state.step // self.epoch_steps, "step": state.step}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row |= {name: means[name] for name in (*self.names[:2], *active)}
        self.distiller.end_epoch({name: row[name] for name in active})
        if self.fabric.is_global_zero:
            if row["epoch"] % self.settings.validate_every == 0 or state.step == self.total:
                row |= self._validate()
            row["images_per_second"] = len(self.data.train) / max(seconds, 1e-9)
            state.rows.append(row)
            self.fabric.log_dict({k: v for k, v in row.items() if k not in ("epoch", "step")}, state.step)
            self.folder.write_metrics(state.rows)
        state.restart_clock()

    def _validate(self) -> dict[str, float]:
        """Accuracy and loss on the validation images."""
        student = self.distiller.student
        with restored(student):
            # as it is: compiling it once more, for evaluation, would take longer
            student._compiled_call_impl = None
            batches = evaluation_stream(self.data.validation, self.data, self.settings, self.device)
            measured = evaluate(student, batches, self.device.autocast)
        if self.state.step == self.total and not math.isfinite(measured.loss):
            raise Diverged(
                f"the validation loss is not finite after the last step ({self.state.step}); "
                "a smaller learning_rate or weight, or precision=float32, may help"
            )
        return {"validation_accuracy": measured.accuracy, "validation_loss": measured.loss}

    def _summed(self) -> Tensor:
        """The sums of all processes."""
        return torch.as_tensor(self.fabric.all_reduce(self.state.sums.clone(), reduce_op="sum"))

    def _figures(self, seconds: float) -> Figures:
        """What is shown of the epoch so far."""
        state = self.state
        values = dict(zip(self.names, (state.sums / state.sums[-1]).tolist(), strict=False))
        shown = [f"{name} {values[name]:.3g}" for name in self.distiller.objective.active]
        shown.append(f"train {100 * values['train_accuracy']:.1f} %")
        validated = [row["validation_accuracy"] for row in state.rows if "validation_accuracy" in row]
        shown += [f"validation {100 * accuracy:.1f} %" for accuracy in validated[-1:]]
        rate = float(state.sums[-1]) * self.fabric.world_size / max(seconds, 1e-9)
        epoch = f"epoch {-(-state.step // self.epoch_steps)}/{self.settings.epochs}"
        return epoch, "  ".join(shown), f"{rate:,.0f} images/s"

    # --- checkpoints, and what ends a run -------------------------------------------------------------------

    def _save(self, *, together: bool = True) -> None:
        # not together, the figures of this epoch are those of the first process's images
        sums = self._summed() if together else self.state.sums
        if self.fabric.is_global_zero:
            self.folder.save_checkpoint(self.state.checkpoint(sums))
        self.state.saved = self.state.step

    def _stop_if_interrupted(self) -> None:
        if not self.interrupted():
            return
        if self.state.step != self.state.saved:
            self._check_finite(together=False)  # the other processes do not know of the interruption
            self._save(together=False)
        where = f"{self.label}, " if self.label else ""
        raise KeyboardInterrupt(
            f"stopped at {where}step {self.state.step} of {self.total}; it is kept in {self.folder.path}; "
            "continue with the same command and --resume"
        )

    def _check_finite(self, *, together: bool = True) -> None:
        """Together: every process calls this at the same steps, and all of them stop or none."""
        seen = self.state.first_bad
        if together and self.fabric.world_size > 1:
            seen = seen.clone()
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MIN)
        bad = {name: at for name, at in zip(self.names, seen.tolist(), strict=False) if at != NEVER}
        parts = (self.distiller.student, self.distiller.objective)
        tensors = [tensor for part in parts for tensor in part.state_dict().values()]
        if not bad and bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()):
            return
        saved = self.state.saved
        kept = "there is no checkpoint yet"
        if saved is not None:
            kept = f"the last good checkpoint (step {saved}) is kept"
        raise Diverged(
            f"{self._what_is_bad(bad)}; {kept} in {self.folder.path}; "
            "a smaller learning_rate or weight, or precision=float32, may help"
        )

    def _what_is_bad(self, bad: Mapping[str, int]) -> str:
        step = self.state.step
        if not bad:
            return f"a weight is not finite after step {step} (epoch {(step - 1) // self.epoch_steps + 1})"
        at = min(bad.values())
        terms = [name for name, first in bad.items() if first == at and name not in self.names[:2]] or [
            "loss"
        ]
        where = f"step {at + 1} (epoch {at // self.epoch_steps + 1})"
        return f"loss term {', '.join(terms)} is not finite at {where}"


def remember(
    memory: Memory,
    distillers: Sequence[Distiller],
    data: ImageData,
    settings: Settings,
    again: str = "the same command goes on",
) -> None:
    """Fill a memory ahead: every view of the settings, every target of the distillers, which share a teacher.

    One forward pass of the teacher a view, for all of them; none for views that are stored. Where nothing
    more can be stored it says so and ends. ``again``: what one who stops it is told.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the views that are done are kept.
    """
    device, teacher = Device.of(settings), SharedTeacher(distillers)
    device.place(teacher.network)
    stream = training_stream(data, settings, device)
    views, steps = number_of_views(settings), stream.steps_per_epoch
    began, asked = time.perf_counter(), 0
    wanted = targets_by_view(distillers, settings)
    missing = memory.missing(wanted)
    with (
        teacher,
        restored(teacher.network),
        show_progress(settings, max(1, len(missing) * steps), 0, "memory", shown=True) as show,
        interruptible() as interrupted,
    ):
        _compile(
            distillers,
            lambda images: teacher.targets(
                images, torch.zeros(len(images), dtype=torch.int64), teacher.losses
            ),
            settings,
            device,
            stream,
            len(missing) * steps,
        )

        def asking(view: int, done: int) -> None:
            nonlocal asked
            if interrupted():
                raise KeyboardInterrupt(f"stopped in view {view + 1} of {views}; {again}")
            asked += 1
            rate = asked * len(data.train) / steps / max(time.perf_counter() - began, 1e-9)
            show(asked, lambda: (f"view {view + 1}/{views}", "", f"{rate:,.0f} images/s"))

        for view in range(views):
            _view(memory, view, wanted[view], teacher, stream, device, asking)
            if memory.stuck:
                return


def _view(
    memory: Memory,
    view: int,
    wanted: Sequence[str],
    teacher: SharedTeacher,
    stream: TrainingStream,
    device: Device,
    asking: Callable[[int, int], None],
) -> dict[str, Encoded]:
    """Targets of a view; ``asking(view, batches done)`` is called after each forward of the teacher."""

    def ask(names: Sequence[str]) -> Iterator[tuple[Tensor, dict[str, Target]]]:
        if stream.world > 1:
            raise TrainingStopped(
                f"view {view + 1} is not in {memory.folder}, and several devices do not fill a memory; "
                "fill it first with eyeline remember"
            )
        teacher.network.eval()
        for done, batch in enumerate(stream.of_view(view), 1):
            with device.autocast():
                targets = teacher.targets(device.images(batch.images), batch.labels, names)
            yield batch.indices, targets
            asking(view, done)

    return memory.view(view, wanted, ask)


def targets_by_view(distillers: Sequence[Distiller], settings: Settings) -> list[list[str]]:
    """For each view the names of the targets that its epochs need: of the terms whose weight is not 0."""
    wanted: list[dict[str, None]] = [{} for _ in range(number_of_views(settings))]
    for distiller in distillers:
        names = target_names(distiller)
        for epoch in range(settings.epochs):
            factor = learning_rate_factor(settings, epoch, 1)
            active = distiller.objective.active_in(epoch, settings.epochs, factor)
            wanted[epoch % len(wanted)] |= {names[term]: None for term in active if term in names}
    return [list(names) for names in wanted]


def number_of_views(settings: Settings) -> int:
    """How many distinct views of an image a run sees."""
    return min(settings.views or settings.epochs, settings.epochs)


def _end_other_processes(fabric: Fabric) -> None:
    """The first process ends those it started: they would wait for it, or it for them."""
    processes = getattr(getattr(fabric.strategy, "_launcher", None), "procs", [])
    for process in processes:
        process.kill()
    processes.clear()  # or Fabric's observer of them would kill this process too, before it can say why


def training_stream(data: ImageData, settings: Settings, device: Device) -> TrainingStream:
    """The training batches that the settings ask for."""
    assert settings.view_seed is not None  # they are resolved
    return TrainingStream(
        data.train,
        batch_size=settings.batch_size,
        augmentation=settings.augmentation,
        normalization=Normalization(data.mean, data.std),
        seed=settings.seed,
        view_seed=settings.view_seed,
        views=settings.views,
        device=device.torch_device,
        rank=device.fabric.global_rank,
        world=device.fabric.world_size,
        size=settings.image_size,
        workers=settings.workers,
    )


def evaluation_stream(split: Split, data: ImageData, settings: Settings, device: Device) -> Iterator[Batch]:
    """The batches of a split for evaluation."""
    # nothing is kept for a backward pass, so more images fit than in a step
    batch_size = min(500, max(1, 4 * settings.batch_size // device.fabric.world_size))
    return evaluation_batches(
        split,
        Normalization(data.mean, data.std),
        device=device.torch_device,
        batch_size=batch_size,
        size=settings.image_size,
        workers=settings.workers,
    )


def _compile(
    distillers: Sequence[Distiller],
    ask: Callable[[Tensor], object],
    settings: Settings,
    device: Device,
    stream: TrainingStream,
    steps: int,
    *,
    trained: int = 0,
) -> list[str]:
    """Compile what pays where the teacher will be asked ``steps`` times, and the only distiller's student
    trained in ``trained`` steps; say so in a line each."""
    if any(distiller.objective.needs("input_gradient") for distiller in distillers):
        if settings.compile not in ("auto", "off", ()):  # torch.compile has no second derivative
            console.print("a method that differentiates gradients cannot be compiled: it runs as it is")
        return []
    sizes = dict.fromkeys(len(stream.indices(step)[1]) for step in (0, stream.steps_per_epoch - 1))
    shape = distillers[0].input_shape

    @functools.cache
    def some(size: int) -> Tensor:
        # in dtype and strides as batches are, or the code would be compiled once more for them
        assert shape is not None
        channels, *side = shape
        images = torch.randn(size, *side, channels, generator=torch.Generator().manual_seed(0))
        return device.images(images.to(device.torch_device).permute(0, 3, 1, 2))

    def ask_for(size: int) -> None:
        with device.autocast():
            ask(some(size))

    teachers = [distiller.teacher for distiller in distillers if distiller.teacher is not None]
    parts = [teacher_part(teachers[0], ask_for, steps)] if teachers else []
    learning: list[nn.Module] = []
    if trained and shape is not None:
        learning = [distillers[0].student.train(), distillers[0].objective]
        # the losses first, which the student is evaluated for as it is
        parts += [losses_part(distillers[0], some, device.autocast, trained)] if teachers else []
        parts.append(student_part(distillers[0], some, device.autocast, trained))
    kept = [copy.deepcopy(module.state_dict()) for module in learning]
    compiled, said = compile_parts(parts, settings.compile, device.torch_device, list(sizes))
    for module, state in zip(learning, kept, strict=True):
        module.load_state_dict(state)  # running statistics have seen the images of the trial
    if device.fabric.is_global_zero:
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return compiled
