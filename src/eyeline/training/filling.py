"""The teacher is asked for what its memory lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from eyeline.console import show_progress
from eyeline.data.batches import TrainingStream
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.errors import TrainingStopped
from eyeline.losses import Target
from eyeline.memory.encoding import Encoded
from eyeline.memory.folder import Memory
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.settings import Settings
from eyeline.training.compiling import compile_for, restored
from eyeline.training.optimizer import learning_rate_factor
from eyeline.training.signals import interruptible
from eyeline.training.streams import training_stream


def fill(
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
        compile_for(
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
            view_of(memory, view, wanted[view], teacher, stream, device, asking)
            if memory.stuck:
                return


def view_of(
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
