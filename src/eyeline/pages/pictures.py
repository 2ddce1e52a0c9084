"""Attention maps as pictures: the same images through several networks, or one network's layers."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from eyeline.errors import InputError
from eyeline.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLORMAP = "magma"

_CELL, _GAP = 1.0, 0.16  # inches

_INK, _MUTED = "#1a1f27", "#5b6472"


def attention_grid(
    images: Tensor,
    maps: Mapping[str, Sequence[Tensor]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Where several networks look, side by side: one row an image, one block of columns a stage.

    Within a block stand the networks, so that maps of one stage are neighbours. Every map is shown at its own
    resolution (one square a position) and scaled from its own minimum (dark) to its own maximum (bright).

    images: uint8 ``[N, C, H, W]``, C is 1 or 3. maps: network name -> its stages, each ``[N, h, w]`` >= 0.
    row_labels: N names of the images. column_labels: names of the stages. out: where to save it as PNG.
    Raises InputError when the shapes or the numbers of labels do not fit.
    """
    stages = {len(each) for each in maps.values()}
    if len(stages) != 1 or not (depth := stages.pop()):
        raise InputError("maps: expected the same number of stages, at least one, for every network")
    rows = _labels("row_labels", row_labels, len(images), "")
    blocks = _labels("column_labels", column_labels, depth, "stage {}")
    for name, each in maps.items():
        for stage, tensor in zip(blocks, each, strict=True):
            _check(images, tensor, f"{name}, {stage}")

    canvas = _Canvas(
        [1.0] * len(images), [1.0, *([_GAP] + [1.0] * len(maps)) * depth], images, rows, top=0.62
    )
    for n, picture in enumerate(images):
        canvas.image(n, 0, picture, rows[n])
        for b in range(depth):
            for k, each in enumerate(maps.values()):
                canvas.map(n, 2 + b * (len(maps) + 1) + k, each[b][n])
    canvas.heading(0, 0, "image")
    for b, stage in enumerate(blocks):
        first = 2 + b * (len(maps) + 1)
        for k, name in enumerate(maps):
            canvas.heading(first + k, first + k, name)
        h, w = next(iter(maps.values()))[b].shape[1:]
        canvas.heading(first, first + len(maps) - 1, f"{stage}  ({h} × {w})", level=1)
    if out is not None:
        save_figure(canvas.figure, out)
    return canvas.figure


def look_figure(
    images: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    row_labels: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Where the layers of one network look: for every image a row a layer, a column a map function.

    Images stand beside one another where they would make a tall strip.

    Maps are drawn as in ``attention_grid``. images: uint8 ``[N, C, H, W]``, C is 1 or 3.
    maps: layer -> map function -> ``[N, h, w]`` >= 0. row_labels: N names of the images.
    out: where to save it as PNG. Raises InputError when the shapes or the numbers of labels do not fit.
    """
    functions = list(next(iter(maps.values()), ()))
    if not functions:
        raise InputError("maps: expected at least one layer with at least one map function")
    names = _labels("row_labels", row_labels, len(images), "")
    for layer, each in maps.items():
        if list(each) != functions:
            raise InputError(
                f"maps: layer {layer!r} has {list(each)}; expected {functions}, as in the others"
            )
        for function, tensor in each.items():
            _check(images, tensor, f"{layer}, {function}")

    depth = len(maps)
    layers = [
        f"{layer}\n{each[functions[0]].shape[1]} × {each[functions[0]].shape[2]}"
        for layer, each in maps.items()
    ]
    block = [1.0, _room(layers), *[1.0] * len(functions)]
    beside = _beside(len(images), depth + _GAP, sum(block) + _room(names))
    rows = -(-len(images) // beside)
    heights, widths = ([1.0] * depth + [_GAP]) * rows, [*block, _GAP + _room(names)] * beside
    canvas = _Canvas(heights[:-1], widths[:-1], images, names, top=0.34)
    for n, picture in enumerate(images):
        top, left = n // beside * (depth + 1), n % beside * (len(block) + 1)
        canvas.image(top, left, picture, names[n])
        for row, each in enumerate(maps.values()):
            for k, function in enumerate(functions):
                canvas.map(top + row, left + 2 + k, each[function][n])
            canvas.row_label(top + row, left + 2, layers[row])
        if not top:
            canvas.heading(left, left, "image")
            for k, function in enumerate(functions):
                canvas.heading(left + 2 + k, left + 2 + k, function)
    if out is not None:
        save_figure(canvas.figure, out)
    return canvas.figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Save a figure as PNG, whole or not at all.

    Raises OSError when the folder cannot be written; the old file is kept then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(_png(figure))
    return path


def data_uri(picture: Figure | bytes) -> str:
    """A figure, or the bytes of a PNG, as a ``data:`` address that a page can carry in itself."""
    content = picture if isinstance(picture, bytes) else _png(picture)
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _labels(name: str, given: Sequence[str] | None, expected: int, default: str) -> list[str]:
    if given is None:
        return [default.format(i + 1) for i in range(expected)]
    if len(given) != expected:
        raise InputError(f"{name}: {len(given)} given, expected {expected}")
    return [str(label) for label in given]


def _check(images: Tensor, map_: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise InputError(
            f"images: {images.dtype} {list(images.shape)}; expected uint8 [N, C, H, W] with C 1 or 3"
        )
    if map_.ndim != 3 or len(map_) != len(images):
        raise InputError(f"map of {name}: shape {list(map_.shape)}; expected [{len(images)}, h, w]")


def _beside(count: int, height: float, width: float) -> int:
    """How many of ``count`` blocks stand beside one another: as few as make no tall strip of them."""
    return next(n for n in range(1, count + 1) if n == count or -(-count // n) * height <= 1.25 * n * width)


def _room(labels: Sequence[str]) -> float:
    """Inches that labels take left of the cells."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    return 0.1 + 0.072 * longest


class _Canvas:
    """A figure of equal cells at exact places: ``heights`` and ``widths`` in cells, gaps included."""

    def __init__(
        self,
        heights: Sequence[float],
        widths: Sequence[float],
        images: Tensor,
        labels: Sequence[str],
        top: float,
    ) -> None:
        self.tall = _CELL * min(max(images.shape[2] / images.shape[3], 0.4), 2.5)
        left, edge, inner = _room(labels), 0.06, 0.04
        width = left + sum(widths) * _CELL + edge
        note = "Each map from its own lowest value (dark) to its highest (bright)."
        lines = textwrap.wrap(note, max(20, int((width - left) / 0.055)))
        self.size = (width, top + sum(heights) * self.tall + 0.2 + 0.12 * len(lines))
        self.figure = Figure(figsize=self.size)
        self.text(left + inner / 2, 0.1, "\n".join(lines), size=7.5, va="bottom")
        self.x = [left + _CELL * sum(widths[:i]) for i in range(len(widths) + 1)]
        self.y = [self.size[1] - top - self.tall * sum(heights[:i]) for i in range(len(heights) + 1)]
        self.inner = inner

    def cell(self, row: int, column: int) -> Axes:
        width, height = self.size
        x, y, pad = self.x[column], self.y[row] - self.tall, self.inner / 2
        ax = self.figure.add_axes(
            (
                (x + pad) / width,
                (y + pad) / height,
                (_CELL - self.inner) / width,
                (self.tall - self.inner) / height,
            )
        )
        ax.set_axis_off()
        return ax

    def image(self, row: int, column: int, picture: Tensor, label: str) -> None:
        pixels = picture.permute(1, 2, 0).cpu().numpy()
        self.cell(row, column).imshow(
            pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels,
            cmap="gray",
            vmin=0,
            vmax=255,
            aspect="auto",
        )
        self.row_label(row, column, label)

    def map(self, row: int, column: int, values: Tensor) -> None:
        shown = values.detach().float().cpu().numpy()
        # a map without contrast is drawn dark, not as noise blown up
        low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
        self.cell(row, column).imshow(
            shown,
            cmap=COLORMAP,
            vmin=low,
            vmax=high if high > low else low + 1,
            interpolation="nearest",
            aspect="auto",
        )

    def row_label(self, row: int, column: int, text: str) -> None:
        self.text(
            self.x[column] - 0.08, self.y[row] - self.tall / 2, text, color=_INK, ha="right", va="center"
        )

    def text(
        self, x: float, y: float, text: str, size: float = 8.5, color: str = _MUTED, **options: Any
    ) -> None:
        """Write at a place given in inches; a dollar sign stays one, instead of opening mathematics."""
        width, height = self.size
        self.figure.text(x / width, y / height, text, fontsize=size, color=color, parse_math=False, **options)

    def heading(self, first: int, last: int, text: str, level: int = 0) -> None:
        """A heading above the columns ``first`` to ``last``; level 1 stands higher, over a rule."""
        x0, x1 = self.x[first] + self.inner / 2, self.x[last] + _CELL - self.inner / 2
        y = self.y[0] + 0.05 + 0.26 * level
        if not level:
            self.text((x0 + x1) / 2, y, text, ha="center")
            return
        self.text((x0 + x1) / 2, y + 0.06, text, 9.5, _INK, ha="center", fontweight="bold")
        width, height = self.size
        self.figure.add_artist(
            Line2D([x0 / width, x1 / width], [y / height, y / height], color=_MUTED, linewidth=0.8)
        )
