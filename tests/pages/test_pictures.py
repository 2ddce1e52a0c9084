"""Pictures: every map is drawn, unblurred and at its place; files are whole or not there."""

from __future__ import annotations

import base64
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from eyeline.errors import InputError
from eyeline.pages.pictures import attention_grid, data_uri, look_figure, save_figure


def _images(count: int = 3, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def _maps(count: int = 3) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: [torch.rand(count, side, side, generator=generator) for side in (16, 8)]
        for name in ("teacher", "student alone", "AT")
    }


def _drawn(figure: Figure) -> list[Any]:
    return [ax.images[0] for ax in figure.axes]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_draws_every_image_and_every_map_as_it_is(channels: int) -> None:
    images, maps = _images(channels=channels), _maps()
    figure = attention_grid(images, maps, ["cat", "dog", "cup"])
    drawn = [picture.get_array() for picture in _drawn(figure)]
    assert len(drawn) == 3 * (1 + 2 * 3)
    for n in range(3):
        row = drawn[n * 7 : (n + 1) * 7]
        np.testing.assert_array_equal(row[0].reshape(32, 32, channels), images[n].permute(1, 2, 0))
        expected = [maps[name][stage][n] for stage in range(2) for name in maps]
        for shown, wanted in zip(row[1:], expected, strict=True):
            np.testing.assert_array_equal(shown, wanted)
    for text in ("cat", "dog", "cup", "image", "teacher", "AT", "stage 1  (16 × 16)", "stage 2  (8 × 8)"):
        assert text in _texts(figure)


def test_maps_are_scaled_each_by_itself_and_not_blurred() -> None:
    maps = _maps(1)
    for picture in _drawn(attention_grid(_images(1), maps))[1:]:
        values = picture.get_array()
        assert picture.get_clim() == (values.min(), values.max())
        assert picture.get_interpolation() == "nearest"
        assert picture.get_cmap().name == "magma"


def test_brighter_pixels_where_the_map_is_higher(tmp_path: Path) -> None:
    values = torch.zeros(1, 2, 2)
    values[0, 0, 1] = 1.0
    path = save_figure(look_figure(_images(1), {"layer": {"sum": values}}), tmp_path / "x.png")
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    figure = look_figure(_images(1), {"layer": {"sum": values}})
    box = figure.axes[1].get_position()
    height, width = pixels.shape

    def at(x: float, y: float) -> float:
        row, column = (1 - box.y0 - y * box.height) * height, (box.x0 + x * box.width) * width
        return float(pixels[int(row), int(column)])

    assert at(0.75, 0.75) > 200  # up right
    assert max(at(0.25, 0.75), at(0.25, 0.25), at(0.75, 0.25)) < 20


def test_a_flat_map_is_dark_and_makes_no_warning() -> None:
    flat = {"teacher": [torch.full((1, 4, 4), 3.0)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = attention_grid(_images(1), flat)
        data_uri(figure)
    low, high = _drawn(figure)[1].get_clim()
    assert low == 3.0
    assert high > low


def test_cells_keep_the_shape_of_the_image() -> None:
    figure = attention_grid(_images(1, height=48, width=32), {"teacher": [torch.rand(1, 6, 4)]})
    width, height = figure.get_size_inches()
    box = figure.axes[1].get_position()
    assert box.height * height / (box.width * width) == pytest.approx(1.5, rel=0.02)


def test_nothing_lies_outside_the_figure_or_over_a_cell() -> None:
    images = _images(2)
    layers = {"layer1.0.conv2": torch.rand(2, 8, 8), "layer2": torch.rand(2, 4, 4)}
    look = look_figure(
        images, {k: {"sum, p=2": v, "max, p=2": v} for k, v in layers.items()}, ["Ankle boot", "b"]
    )
    for figure in (attention_grid(images, _maps(2), ["Ankle boot", "b"]), look):
        figure.canvas.draw()
        cells = [ax.get_window_extent() for ax in figure.axes]
        for text in figure.texts:
            box = text.get_window_extent()
            assert figure.bbox.containsx(box.x0), text
            assert figure.bbox.containsx(box.x1), text
            assert figure.bbox.containsy(box.y0), text
            assert figure.bbox.containsy(box.y1), text
            assert not text.get_text() or not any(box.overlaps(cell) for cell in cells), text
        for i, one in enumerate(cells):
            assert not any(one.overlaps(other) for other in cells[i + 1 :])


def test_look_has_a_row_a_layer_and_a_column_a_function() -> None:
    maps = {
        layer: {name: torch.rand(2, side, side) for name in ("sum, p=1", "sum, p=2", "max, p=1")}
        for layer, side in (("layer1", 8), ("layer2", 4))
    }
    figure = look_figure(_images(2), maps, ["first", "second"])
    drawn = [picture.get_array() for picture in _drawn(figure)]
    assert len(drawn) == 2 * (1 + 2 * 3)
    expected = [maps[layer][name][1] for layer in maps for name in maps[layer]]
    for shown, wanted in zip(drawn[8:], expected, strict=True):
        np.testing.assert_array_equal(shown, wanted)
    for text in ("first", "second", "layer1\n8 × 8", "layer2\n4 × 4", "sum, p=1", "max, p=1"):
        assert text in _texts(figure)


def test_many_images_of_a_look_make_no_tall_strip() -> None:
    maps = {layer: {"sum": torch.rand(9, 4, 4)} for layer in ("layer1", "layer2", "layer3")}
    figure = look_figure(_images(9), maps, [f"image {i}" for i in range(9)])
    width, height = figure.get_size_inches()
    assert height < 1.5 * width
    drawn = [picture.get_array() for picture in _drawn(figure)]
    expected = [maps[layer]["sum"][n] for n in range(9) for layer in maps]
    for shown, wanted in zip([a for i, a in enumerate(drawn) if i % 4], expected, strict=True):
        np.testing.assert_array_equal(shown, wanted)
    cells = [ax.get_position() for ax in figure.axes[::4]]  # the images, in reading order
    assert cells == sorted(cells, key=lambda box: (-round(box.y1, 3), box.x0))
    assert len({round(box.y1, 3) for box in cells}) < 9
    figure.canvas.draw()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    for text in figure.texts:
        assert not any(text.get_window_extent().overlaps(box) for box in boxes), text


def test_a_dollar_sign_in_a_name_is_no_mathematics() -> None:
    figure = attention_grid(_images(1), {"a$_1": [torch.rand(1, 2, 2)]}, [r"$\frac$"])
    data_uri(figure)  # \frac without arguments would fail
    assert "a$_1" in _texts(figure)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.rand(3, 3, 8, 8)}, "expected uint8"),
        ({"images": torch.zeros(3, 2, 8, 8, dtype=torch.uint8)}, "C 1 or 3"),
        ({"maps": {"a": [torch.rand(3, 4, 4)], "b": []}}, "same number of stages"),
        ({"maps": {}}, "same number of stages"),
        ({"maps": {"a": [torch.rand(2, 4, 4)]}}, r"expected \[3, h, w\]"),
        ({"maps": {"a": [torch.rand(3, 1, 4, 4)]}}, r"expected \[3, h, w\]"),
        ({"row_labels": ["x"]}, "row_labels: 1 given, expected 3"),
        ({"column_labels": ["x"]}, "column_labels: 1 given, expected 2"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        attention_grid(**({"images": _images(), "maps": _maps()} | change))


def test_look_refuses_layers_with_different_functions() -> None:
    one = torch.rand(1, 2, 2)
    with pytest.raises(InputError, match="layer 'b'"):
        look_figure(_images(1), {"a": {"sum": one}, "b": {"max": one}})
    with pytest.raises(InputError, match="at least one layer"):
        look_figure(_images(1), {})


def test_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "attention.png"
    figure = attention_grid(_images(1), _maps(1), out=path)
    before = path.read_bytes()
    with Image.open(io.BytesIO(before)) as image:
        image.verify()

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, 100)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_figure(figure, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["attention.png"]  # no half file is left

    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # the one step that changes what was there
        patch.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError):
            save_figure(attention_grid(_images(2), _maps(2)), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["attention.png"]


def test_data_uri_holds_the_png() -> None:
    head, _, body = data_uri(attention_grid(_images(1), _maps(1))).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert image.format == "PNG"
    assert data_uri(b"abc") == "data:image/png;base64,YWJj"


def test_no_global_state_of_pyplot_is_used() -> None:
    import matplotlib.pyplot as plt

    attention_grid(_images(1), _maps(1))
    assert plt.get_fignums() == []
