"""The page of a study or a run. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from pathlib import Path

from eyeline.verbs._common import checked_arguments


@checked_arguments
def report(folder: str | Path, out: str | None = None) -> Path:
    """Write the page of a study or a run: table, curves, attention maps, protocol.

    Args:
        folder: of a study or a run
        out: the page, HTML (default: report.html in the folder)

    Returns:
        The path of the page; it needs no network.

    Raises:
        InputError: the folder is no study or run, or is damaged.
    """
    from eyeline.pages import write_page

    return write_page(Path(folder), None if out is None else Path(out))
