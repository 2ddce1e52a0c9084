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
            _fit(distiller, data, settings, folder, memory, label, device)
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


def _fit(
    distiller: Distiller,
    data: ImageData,
    settings: Settings,
    folder: RunFolder,
    memory: Memory | None,
    label: str,
    device: Device,
) -> None:
    fabric = device.fabric
    if fabric.device.type == "cpu":
        keep_freed_memory()
    device.place(distiller)
    stream = training_stream(data, settings, device)

    def validation() -> Iterator[Batch]:
        return evaluation_stream(data.validation, data, settings, device)

    steps_per_epoch, total = stream.steps_per_epoch, settings.epochs * stream.steps_per_epoch

    state = folder.load_checkpoint()
    asked = total
    remembered = {} if memory is None else target_names(distiller)  # loss -> name of its target
    wanted = targets_by_view([distiller], settings)
    if memory is not None and all(loss.remembers for loss in distiller.objective.targeted.values()):
        asked = len(memory.missing(wanted)) * steps_per_epoch
    choosing = settings.compile == "auto"
    if choosing and not fabric.is_global_zero:  # all run what the first one chooses
        settings = dataclasses.replace(settings, compile=fabric.broadcast(settings.compile))
    compiled = _compile([distiller], distiller.target, settings, device, stream, asked, trained=total)
    if choosing and fabric.is_global_zero:
        folder.settle(compile=fabric.broadcast(compiled) or "off")

    optimizer = make_optimizer(settings, distiller.trainable_parameters())
    peak = optimizer.param_groups[0]["lr"]
    one_step = _Step(distiller)
    module, optimizer = fabric.setup(one_step, optimizer)
    module.train()

    names = ["loss", "train_accuracy", *distiller.objective.method]
    sums = torch.zeros(
        len(names) + 1, dtype=torch.float64, device=fabric.device
    )  # over the epoch; last, images
    never = torch.iinfo(torch.int64).max
    first_bad = torch.full_like(sums, never, dtype=torch.int64)
    start, seconds, rows = 0, 0.0, folder.read_metrics()
    if state is not None:
        start, seconds = state["step"], state["epoch_seconds"]
        try:
            distiller.student.load_state_dict(state["student"])
            distiller.objective.load_state_dict(state["objective"])
            optimizer.load_state_dict(state["optimizer"])
            if fabric.is_global_zero:  # those of all processes
                sums.copy_(state["sums"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the checkpoint in {folder.path} is of another network or method "
                f"({str(error).splitlines()[0][:100]}); start anew with --overwrite"
            ) from error
    rows = [row for row in rows if row["step"] <= start]

    saved: int | None = start if state is not None else None

    def check_finite(step: int, *, together: bool = True) -> None:
        """Together: every process calls this at the same steps, and all of them stop or none."""
        seen = first_bad
        if together and fabric.world_size > 1:
            seen = first_bad.clone()
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MIN)
        bad = {name: at for name, at in zip(names, seen.tolist(), strict=False) if at != never}
        state = [*distiller.student.state_dict().values(), *distiller.objective.state_dict().values()]
        if not bad and bool(torch.stack([torch.isfinite(tensor).all() for tensor in state]).all()):
            return
        kept = (
            f"the last good checkpoint (step {saved}) is kept"
            if saved is not None
            else "there is no checkpoint yet"
        )
        if bad:
            at = min(bad.values())
            terms = [name for name, first in bad.items() if first == at and name not in names[:2]] or ["loss"]
            what = (
                f"loss term {', '.join(terms)} is not finite at step {at + 1} "
                f"(epoch {at // steps_per_epoch + 1})"
            )
        else:
            what = f"a weight is not finite after step {step} (epoch {(step - 1) // steps_per_epoch + 1})"
        raise Diverged(
            f"{what}; {kept} in {folder.path}; "
            "a smaller learning_rate or weight, or precision=float32, may help"
        )

    def summed() -> Tensor:
        return torch.as_tensor(fabric.all_reduce(sums.clone(), reduce_op="sum"))

    def save(step: int, *, together: bool = True) -> None:
        nonlocal saved
        # not together, the figures of this epoch are those of the first process's images
        kept = summed() if together else sums
        if fabric.is_global_zero:
            folder.save_checkpoint(
                {
                    "format": 2,
                    "step": step,
                    "epoch_seconds": seconds + time.perf_counter() - began,
                    "student": distiller.student.state_dict(),
                    "objective": distiller.objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sums": kept,
                }
            )
        saved = step

    def figures(epoch: int, elapsed: float) -> Figures:
        values = dict(zip(names, (sums / sums[-1]).tolist(), strict=False))
        shown = [f"{name} {values[name]:.3g}" for name in distiller.objective.active]
        shown.append(f"train {100 * values['train_accuracy']:.1f} %")
        validated = [row["validation_accuracy"] for row in rows if "validation_accuracy" in row]
        shown += [f"validation {100 * accuracy:.1f} %" for accuracy in validated[-1:]]
        rate = float(sums[-1]) * fabric.world_size / max(elapsed, 1e-9)
        return f"epoch {epoch}/{settings.epochs}", "  ".join(shown), f"{rate:,.0f} images/s"

    targets: dict[str, Encoded] = {}
    view: int | None = None  # whose targets these are

    def stop_if_interrupted() -> None:
        if interrupted():
            if step != saved:
                check_finite(step, together=False)  # the other processes do not know of the interruption
                save(step, together=False)
            where = f"{label}, " if label else ""
            raise KeyboardInterrupt(
                f"stopped at {where}step {step} of {total}; it is kept in {folder.path}; "
                "continue with the same command and --resume"
            )

    def asking(number: int, done: int) -> None:
        stop_if_interrupted()
        if console.is_terminal:
            figures = f"view {number + 1}: asking the teacher {100 * done // steps_per_epoch} %"
            show(step, lambda: (f"epoch {step // steps_per_epoch + 1}/{settings.epochs}", figures, ""))

    if start % steps_per_epoch:
        _set_progress(distiller, settings, start, steps_per_epoch)
    step, began = start, time.perf_counter()
    every = settings.checkpoint_every or steps_per_epoch
    progress = show_progress(settings, total, start, label, shown=fabric.is_global_zero)
    with (
        progress as show,
        interruptible(fabric.is_global_zero) as interrupted,
        recompiling() if compiled else nullcontext(),
    ):
        for batch in stream.batches(start, total):
            if step % steps_per_epoch == 0:
                _set_progress(distiller, settings, step, steps_per_epoch)
                sums.zero_()
                seconds, began = 0.0, time.perf_counter()
            if remembered and batch.view != view:
                assert memory is not None
                view = batch.view
                targets = _view(
                    memory, view, wanted[view], SharedTeacher([distiller]), stream, device, asking
                )
            if remembered:
                indices = stream.indices(step)[1]  # not the batch's, for which the host would wait
                one_step.targets = {
                    term: targets[name].rows(indices, fabric.device).decode()
                    for term, name in remembered.items()
                    if term in distiller.objective.active
                }
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(settings, step, steps_per_epoch)
            # dropout and the like draw from a seed of the step, not from a state that a checkpoint would need
            seed_draws(mix(settings.seed, step, fabric.global_rank) >> 1, fabric.device)
            loss, values = module(batch.images, batch.labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            torch.minimum(first_bad, torch.where(torch.isfinite(values), never, step), out=first_bad)
            sums += values
            step += 1

            done, epoch = (step - 1) % steps_per_epoch + 1, -(-step // steps_per_epoch)
            elapsed = seconds + time.perf_counter() - began
            if done == steps_per_epoch or step % every == 0:
                check_finite(step)
            if done == steps_per_epoch:
                seconds += time.perf_counter() - began
                whole = summed()
                row = {"epoch": epoch, "step": step, "learning_rate": optimizer.param_groups[0]["lr"]}
                means = dict(zip(names, (whole / whole[-1]).tolist(), strict=False))
                row |= {name: means[name] for name in (*names[:2], *distiller.objective.active)}
                distiller.end_epoch({name: row[name] for name in distiller.objective.active})
                if fabric.is_global_zero:
                    if epoch % settings.validate_every == 0 or step == total:
                        with restored(distiller.student):
                            # as it is: compiling it once more, for evaluation, would take longer
                            distiller.student._compiled_call_impl = None
                            measured = evaluate(distiller.student, validation(), device.autocast)
                        if step == total and not math.isfinite(measured.loss):
                            raise Diverged(
                                f"the validation loss is not finite after the last step ({step}); "
                                "a smaller learning_rate or weight, or precision=float32, may help"
                            )
                        row |= {
                            "validation_accuracy": measured.accuracy,
                            "validation_loss": measured.loss,
                        }
                    row["images_per_second"] = len(data.train) / max(seconds, 1e-9)
                    rows.append(row)
                    fabric.log_dict({k: v for k, v in row.items() if k not in ("epoch", "step")}, step)
                    folder.write_metrics(rows)
                seconds, began = 0.0, time.perf_counter()
            show(step, functools.partial(figures, epoch, elapsed))
            if done == steps_per_epoch or step % every == 0:
                save(step)
            stop_if_interrupted()


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
    return evaluation_batches(
        split,
        Normalization(data.mean, data.std),
        device=device.torch_device,
        size=settings.image_size,
        workers=settings.workers,
    )


def _set_progress(distiller: Distiller, settings: Settings, step: int, steps_per_epoch: int) -> None:
    epoch = step // steps_per_epoch
    factor = learning_rate_factor(settings, epoch * steps_per_epoch, steps_per_epoch)
    distiller.set_progress(epoch, settings.epochs, factor)


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
