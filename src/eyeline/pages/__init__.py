"""Pictures of attention, the table of a study, and the page. Names are imported when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyeline.pages.page import run_page, study_page, write_page
    from eyeline.pages.pictures import attention_grid, data_uri, look_figure, save_figure
    from eyeline.pages.tables import protocol, read_study, study_markdown, study_rows, study_table

_HOME = {
    "attention_grid": "pictures",
    "data_uri": "pictures",
    "look_figure": "pictures",
    "protocol": "tables",
    "read_study": "tables",
    "run_page": "page",
    "save_figure": "pictures",
    "study_markdown": "tables",
    "study_page": "page",
    "study_rows": "tables",
    "study_table": "tables",
    "write_page": "page",
}

__all__ = [
    "attention_grid",
    "data_uri",
    "look_figure",
    "protocol",
    "read_study",
    "run_page",
    "save_figure",
    "study_markdown",
    "study_page",
    "study_rows",
    "study_table",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
