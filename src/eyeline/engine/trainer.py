"""The training loop, on Lightning Fabric.

The state of a run is the weights, the optimizer and the number of the step: order, views, learning rate and random
draws are functions of the step. So a run resumes from any step exactly where it was.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from eyeline.data.loaders import Batch, TrainingStream, evaluation_batches
from eyeline.data.sources import ImageData, Split
from eyeline.data.views import Normalization, mix
from eyeline.distiller import Distiller
from eyeline.engine.run import RunFolder
from eyeline.errors import InputError
from eyeline.evaluate import evaluate
from eyeline.settings import Settings

console = Console(stderr=True)
# Fabric announces its precision at every start; the run folder records it
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


class TrainingStopped(RuntimeError):
    """Training cannot go on: a loss is no longer finite. The last good checkpoint is kept."""


@dataclass(frozen=True)
class Device:
    """Where and in which precision networks run."""

    fabric: Fabric
    bf16: bool

    @classmethod
    def of(cls, settings: Settings, loggers: Any = ()) -> Device:
        """Choose the hardware that the settings ask for."""
        accelerator, devices = settings.accelerator, settings.devices
        if devices == "auto" and not torch.cuda.is_available():
            devices = 1
        try:
            kind = Fabric(accelerator=accelerator, devices=devices).device.type
            bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_native_bf16(kind))
            fabric = Fabric(
                accelerator=accelerator, devices=devices, precision="bf16-mixed" if bf16 else "32-true", loggers=loggers
            )
        except Exception as error:  # Lightning raises its own kinds for hardware that is not there
            raise InputError(f"cannot use accelerator={accelerator!r}, devices={devices!r}: {error}") from error
        return cls(fabric, bf16)

    @property
    def torch_device(self) -> torch.device:
        return self.fabric.device

    def autocast(self) -> Any:
        """The context that networks run in."""
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.bf16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network here, in the memory format that convolutions are fastest in."""
        return model.to(self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def has_native_bf16(device: str) -> bool:
    """Whether the hardware computes in bfloat16 by itself, where emulation would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def learning_rate_factor(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """Learning rate over its peak at a step (from 0): linear warm-up, then the schedule."""
    total = settings.epochs * steps_per_epoch
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    schedule = settings.schedule
    if schedule == "auto":
        schedule = "step" if settings.optimizer == "sgd" else "cosine"
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
    if schedule == "step":
        done = (step // steps_per_epoch) / settings.epochs
        return settings.gamma ** sum(done >= milestone - 1e-9 for milestone in settings.milestones)
    return 1.0


def make_optimizer(settings: Settings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD as in the papers (momentum, no Nesterov, decay on all parameters), or AdamW."""
    sgd = settings.optimizer == "sgd"
    rate = settings.learning_rate if settings.learning_rate is not None else (0.1 if sgd else 1e-3)
    decay = settings.weight_decay if settings.weight_decay is not None else (5e-4 if sgd else 0.05)
    if sgd:
        return torch.optim.SGD(parameters, rate, settings.momentum, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)


class _Step(nn.Module):
    """What runs on every device: from a batch to the loss, and the figures of the step in one tensor."""

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        terms = self.distiller(images, labels)
        correct = (terms.logits.detach().argmax(1) == labels).float().mean()
        return terms.total, torch.stack([terms.total.detach(), correct, *(t.float() for t in terms.values())])


def fit(
    distiller: Distiller,
    data: ImageData,
    settings: Settings,
    folder: RunFolder,
    *,
    label: str = "",
) -> None:
    """Train a distiller's student; continue from the folder's checkpoint if there is one.

    Writes ``metrics.csv``, ``tensorboard/`` and ``last.ckpt``.

    Raises:
        TrainingStopped: a loss became NaN or infinite; names the term and the step.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    device = Device.of(settings, TensorBoardLogger(folder.path, name="", version="tensorboard"))
    fabric = device.fabric
    fabric.launch()
    device.place(distiller)
    if _compiles(settings, fabric.device.type):
        distiller.student.compile()
        if distiller.teacher is not None:
            distiller.teacher.compile()

    normalization = Normalization(data.mean, data.std)
    stream = training_stream(data, settings, device)
    validation = lambda: evaluation_stream(data.validation, data, settings, device)  # noqa: E731
    steps_per_epoch, total = stream.steps_per_epoch, settings.epochs * stream.steps_per_epoch

    optimizer = make_optimizer(settings, distiller.trainable_parameters())
    peak = optimizer.param_groups[0]["lr"]
    module, optimizer = fabric.setup(_Step(distiller), optimizer)
    module.train()

    names = ["loss", "train_accuracy", *distiller.objective.method]
    sums = torch.zeros(len(names), dtype=torch.float64, device=fabric.device)
    never = torch.iinfo(torch.int64).max
    first_bad = torch.full((len(names),), never, device=fabric.device)
    start, seconds, rows = 0, 0.0, folder.read_metrics()
    state = folder.load_checkpoint()
    if state is not None:
        start, seconds = state["step"], state["epoch_seconds"]
        distiller.student.load_state_dict(state["student"])
        distiller.objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        sums.copy_(state["sums"])
    rows = [row for row in rows if row["step"] <= start]

    def check_finite(step: int) -> None:
        bad = {name: int(at) for name, at in zip(names, first_bad.tolist(), strict=True) if at != never}
        if not bad:
            return
        at = min(bad.values())
        terms = [name for name, first in bad.items() if first == at and name != "loss"] or ["loss"]
        kept = state_step if state_step is not None else "none yet"
        raise TrainingStopped(
            f"loss term {', '.join(terms)} is not finite at step {at} (epoch {at // steps_per_epoch + 1}); "
            f"stopped; the last good checkpoint is kept (step {kept}) in {folder.path}; "
            "a smaller learning_rate or weight, or precision=float32, may help"
        )

    state_step: int | None = start if state is not None else None

    def save(step: int) -> None:
        nonlocal state_step
        check_finite(step)
        if not all(bool(torch.isfinite(p).all()) for p in distiller.trainable_parameters()):
            raise TrainingStopped(f"a weight is not finite after step {step}; the last good checkpoint is kept")
        if fabric.is_global_zero:
            folder.save_checkpoint(
                {
                    "format": 1,
                    "step": step,
                    "epoch_seconds": seconds + time.perf_counter() - began,
                    "student": distiller.student.state_dict(),
                    "objective": distiller.objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sums": sums,
                }
            )
        state_step = step

    if start % steps_per_epoch:
        _set_progress(distiller, settings, start, steps_per_epoch)
    step, began = start, time.perf_counter()
    with _progress(settings, total, start, label) as show, _interruptible() as interrupted:
        for batch in stream.batches(start, total):
            if step % steps_per_epoch == 0:
                _set_progress(distiller, settings, step, steps_per_epoch)
                sums.zero_()
                seconds, began = 0.0, time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(settings, step, steps_per_epoch)
            # dropout and the like draw from a seed of the step, not from a state that a checkpoint would need
            torch.manual_seed(mix(settings.seed, step, fabric.global_rank) >> 1)
            loss, values = module(batch.images, batch.labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            torch.minimum(first_bad, torch.where(torch.isfinite(values), never, step), out=first_bad)
            sums += values
            step += 1

            done_in_epoch = (step - 1) % steps_per_epoch + 1
            show(step, lambda done=done_in_epoch: _figures(names, sums / done, batch, settings, step, steps_per_epoch))
            if done_in_epoch == steps_per_epoch:
                check_finite(step)
                epoch = step // steps_per_epoch
                seconds += time.perf_counter() - began
                averages = fabric.all_reduce(sums / steps_per_epoch, reduce_op="mean")
                row = {"epoch": epoch, "step": step, "learning_rate": optimizer.param_groups[0]["lr"]}
                row |= dict(zip(names, averages.tolist(), strict=True))
                if epoch % settings.validate_every == 0 or step == total:
                    figures = evaluate(distiller.student, validation(), device.autocast)
                    row |= {"validation_accuracy": figures["accuracy"], "validation_loss": figures["loss"]}
                row["images_per_second"] = len(data.train) / max(seconds, 1e-9)
                rows.append(row)
                fabric.log_dict({k: v for k, v in row.items() if k not in ("epoch", "step")}, step)
                if fabric.is_global_zero:
                    folder.write_metrics(rows)
                seconds, began = 0.0, time.perf_counter()
            every = settings.checkpoint_every or steps_per_epoch
            if step % every == 0 or step == total:
                save(step)
            if interrupted():
                save(step)
                raise KeyboardInterrupt(f"stopped at step {step} of {total}; continue with --resume true")
    for logger in fabric.loggers:
        logger.finalize("success")


def training_stream(data: ImageData, settings: Settings, device: Device) -> TrainingStream:
    """The training batches that the settings ask for."""
    files = data.size is None
    augmentation = settings.augmentation
    if augmentation == "auto":
        augmentation = "resized-crop" if files else "crop+flip"
    if augmentation == "resized-crop" and not files:
        raise InputError("augmentation 'resized-crop' is for folders of images; for images in memory use 'crop+flip'")
    return TrainingStream(
        data.train,
        batch_size=settings.batch_size,
        augmentation=augmentation,
        normalization=Normalization(data.mean, data.std),
        seed=settings.seed,
        view_seed=settings.seed if settings.view_seed is None else settings.view_seed,
        device=device.torch_device,
        rank=device.fabric.global_rank,
        world=device.fabric.world_size,
        size=settings.image_size or 224,
        workers=settings.workers,
    )


def evaluation_stream(split: Split, data: ImageData, settings: Settings, device: Device) -> Iterator[Batch]:
    """The batches of a split for evaluation."""
    return evaluation_batches(
        split,
        Normalization(data.mean, data.std),
        device=device.torch_device,
        size=settings.image_size or 224,
        workers=settings.workers,
    )


def _set_progress(distiller: Distiller, settings: Settings, step: int, steps_per_epoch: int) -> None:
    epoch = step // steps_per_epoch
    factor = learning_rate_factor(settings, epoch * steps_per_epoch, steps_per_epoch)
    distiller.set_progress(epoch, settings.epochs, factor)


def _compiles(settings: Settings, device: str) -> bool:
    # on a CPU it gains little and costs half a minute
    return settings.compile == "on" or (settings.compile == "auto" and device == "cuda")


def _figures(names: list[str], averages: Tensor, batch: Batch, settings: Settings, step: int, per_epoch: int) -> str:
    values = dict(zip(names, averages.tolist(), strict=True))
    terms = " ".join(f"{name} {value:.3g}" for name, value in values.items() if name not in ("loss", "train_accuracy"))
    epoch = -(-step // per_epoch)
    return f"epoch {epoch}/{settings.epochs} {terms} acc {100 * values['train_accuracy']:.1f}%"


@contextmanager
def _progress(
    settings: Settings, total: int, start: int, label: str
) -> Iterator[Callable[[int, Callable[[], str]], None]]:
    """A progress bar; its figures are read from the device a few times a second only."""
    if not settings.progress:
        yield lambda step, figures: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[figures]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(label, total=total, completed=start, figures="", rate="")
        last, last_step = time.perf_counter(), start

        def show(step: int, figures: Callable[[], str]) -> None:
            nonlocal last, last_step
            now = time.perf_counter()
            if now - last < 0.3 and step < total:
                return
            rate = (step - last_step) / (now - last) * settings.batch_size
            bar.update(task, completed=step, figures=figures(), rate=f"{rate:,.0f} img/s")
            last, last_step = now, step

        yield show


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the step; a second one stops at once."""
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    kept = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, on_signal)
    except ValueError:  # not in the main thread: signals are not ours to take
        pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
