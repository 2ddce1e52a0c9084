"""What is said on the terminal while something runs, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from eyeline.ranks import is_main_process
from eyeline.settings import Settings

console = Console(stderr=True)


def say(line: str) -> None:
    """A line for the user; of several processes the main one says it."""
    if is_main_process():
        console.print(line, soft_wrap=True, highlight=False, markup=False)


Figures = tuple[str, str, str]
"""The epoch, the losses and accuracies, the rate."""


class _Bar(Progress):
    """A progress bar with a line of figures below it, together no wider than 80 columns."""

    figures = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(f"  {self.figures}", no_wrap=True, overflow="ellipsis")


@contextmanager
def show_progress(
    settings: Settings, total: int, start: int, label: str, *, shown: bool
) -> Iterator[Callable[[int, Callable[[], Figures]], None]]:
    """Show how training goes: a bar on a terminal, elsewhere a line every tenth of the run.

    The figures are made, and so read from the device, only when they are shown.
    """
    if not (settings.progress and shown):
        yield lambda step, figures: None
        return
    if not console.is_terminal:

        def show_line(step: int, figures: Callable[[], Figures]) -> None:
            if step * 10 // total > (step - 1) * 10 // total:
                parts = (label, f"{step * 10 // total * 10} %", *figures())
                line = "  ".join(part for part in parts if part)
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        yield show_line
        return

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(max_width=26, no_wrap=True)),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[epoch]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with _Bar(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(label or "training", total=total, completed=start, epoch="", rate="")

        last = 0.0

        def show_bar(step: int, figures: Callable[[], Figures]) -> None:
            nonlocal last
            if time.perf_counter() - last < 0.3 and step < total:
                return
            epoch, bar.figures, rate = figures()
            bar.update(task, completed=step, epoch=epoch, rate=rate)
            last = time.perf_counter()

        yield show_bar
