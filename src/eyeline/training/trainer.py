"""The training loop, on Lightning Fabric.

The state of a run is the weights, the optimizer and the number of the step: order, views, learning rate and
random draws are functions of the step. So a run resumes from any step exactly where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from eyeline.console import Figures, console, show_progress
from eyeline.data.batches import Batch
from eyeline.data.splits import ImageData
from eyeline.device import Device, fabric_is_silent
from eyeline.distiller import Distiller
from eyeline.doctor import idle_parameters
from eyeline.errors import Diverged, InputError
from eyeline.losses import Target
from eyeline.memory.encoding import Encoded
from eyeline.memory.folder import Memory
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.randomness import draws_apart, mix, seed_draws
from eyeline.runs.folder import RunFolder
from eyeline.settings import Settings
from eyeline.training.allocator import keep_freed_memory
from eyeline.training.compiling import compile_for, recompiling, restored
from eyeline.training.evaluation import evaluate
from eyeline.training.filling import targets_by_view, view_of
from eyeline.training.optimizer import learning_rate_factor, make_optimizer
from eyeline.training.signals import interruptible
from eyeline.training.state import NEVER, Part, RunState
from eyeline.training.streams import evaluation_stream, training_stream

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
        compiled = compile_for(
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
            self.targets = view_of(
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


def _end_other_processes(fabric: Fabric) -> None:
    """The first process ends those it started: they would wait for it, or it for them."""
    processes = getattr(getattr(fabric.strategy, "_launcher", None), "procs", [])
    for process in processes:
        process.kill()
    processes.clear()  # or Fabric's observer of them would kill this process too, before it can say why
