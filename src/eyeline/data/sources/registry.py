"""Sources of data by name. A new one is one file with a function ``@source("name")``, and its name in
``eyeline.names.DATA``, where it is known without PyTorch."""

from __future__ import annotations

from collections.abc import Callable

from eyeline.data.packed import Progress
from eyeline.data.splits import ImageData
from eyeline.settings import Settings

Listed = tuple[ImageData, Callable[[], ImageData]]
"""The data as it is listed, and what then decodes its images (see :func:`eyeline.data.sources.list_data`)."""
Source = Callable[[str, Settings, Callable[[str], None], Progress], Listed]
"""The name that was given, the settings, what takes a line for the user, what shows how far it is."""

SOURCES: dict[str, Source] = {}


def source(*names: str) -> Callable[[Source], Source]:
    """Register a source under its names; after a colon at the end comes anything, as in ``folder:PATH``."""

    def register(function: Source) -> Source:
        SOURCES.update(dict.fromkeys(names, function))
        return function

    return register


def named_source(name: str) -> Source:
    """The source of a name that is known."""
    prefix, colon, _ = name.partition(":")
    return SOURCES[prefix + colon]


def at_once(data: ImageData) -> Listed:
    """Data that is in memory when it is listed."""
    return data, lambda: data
