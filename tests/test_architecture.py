"""Imports run downward through the rooms, in the order of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import eyeline

SOURCE = Path(eyeline.__file__).parent
ROOMS = (
    *("errors", "ranks", "cores", "files", "randomness", "kinds", "names", "settings", "console", "device"),
    *("attention", "double_backward", "observe", "isolation", "losses", "functional", "objective"),
    *("distiller", "doctor", "models", "data", "hashing", "fingerprint", "memory", "runs"),
    *("experiment", "training", "pages", "studies", "verbs", "cli"),
)
OF_ONE_SYSTEM = {
    *("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"),
    *("msvcrt", "winreg", "_winapi"),
}
UPWARD = {
    ("studies", "verbs"): "a worker does the runs of another process's study",
}
"""What is imported against the order, inside of functions or in a process of its own."""


def imports(file: Path) -> Iterator[str]:
    """What a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported(file: Path) -> Iterator[str]:
    """The rooms that a file imports."""
    for name in imports(file):
        root, _, rest = name.partition(".")
        if root == "eyeline" and rest.partition(".")[0] in ROOMS:
            yield rest.partition(".")[0]


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(file for file in SOURCE.rglob("*.py") if not room(file).startswith("__"))


def test_every_room_is_in_the_order() -> None:
    assert {room(file) for file in FILES} == set(ROOMS)


def test_the_map_lists_the_rooms_in_their_order() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = page.partition("src/eyeline/\n")[2].partition("```")[0]
    assert tuple(re.findall(r"^  ([a-z][a-z_]*)(?:\.py|/) ", listed, re.MULTILINE)) == ROOMS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_imports_run_downward(file: Path) -> None:
    ours = room(file)
    above = {
        name
        for name in imported(file)
        if ROOMS.index(name) > ROOMS.index(ours) and (ours, name) not in UPWARD
    }
    assert not above


def test_the_package_can_be_imported_on_every_system() -> None:
    found = {(file.name, name) for file in FILES for name in imports(file)}
    assert not {(file, name) for file, name in found if name.partition(".")[0] in OF_ONE_SYSTEM}
    assert ("kinds.py", "yaml") in found  # also those inside of functions
