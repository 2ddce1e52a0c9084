"""Values as their annotations want them: of the settings, the verbs, the command line and the recipes.

No heavy import: the command line reads this file.
"""

from __future__ import annotations

import functools
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from eyeline.errors import InputError, unknown


def as_kind(name: str, value: Any, kind: Any, *, said: bool = False) -> Any:
    """``value`` as the annotation ``kind`` wants it: a number as int or float, a list of such numbers, ...

    Args:
        name: of the argument, for the error.
        value: what was given. No bool is a number, and a number is finite.
        kind: the annotation: bool, int, float, str, Path, Literal, a list, tuple or mapping, or a union.
        said: whether text may stand for another kind, as on the command line and in a recipe: ``a,b`` for a
            list, YAML for a mapping.

    Raises:
        InputError: it is of another kind.
    """
    try:
        made = _converted(value, kind, said)
    except InputError:
        pass
    else:
        if isinstance(made, str | Path):
            several = takes_list(kind) or any(map(_is_mapping, _kinds(kind)))  # names, as of layers
            _check_text(name, str(made), path=not several)
        return made
    kinds = _kinds(kind)
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices and all(each is type(None) or get_origin(each) is Literal for each in kinds):
        raise unknown(name, value, choices)
    wanted = expected(kind)
    if isinstance(value, float) and not math.isfinite(value):
        wanted = wanted.replace("a number", "a finite number")
    raise InputError(f"{name} is {_shown(value)}; expected {wanted}")


def expected(kind: Any) -> str:
    """What a value should be, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    phrases = []
    for each in _kinds(kind):
        if get_origin(each) is Literal:
            phrases.append(", ".join(map(str, get_args(each))))
        elif takes_list(each):
            inner = {int: "whole numbers", float: "numbers"}.get(get_args(each)[0], "names")
            phrases.append(f"several {inner}, as a,b,c")
        elif _is_mapping(each):
            phrases.append("a mapping")
        elif each in words:
            phrases.append(words[each])
    return " or ".join(dict.fromkeys(phrases))


def takes_list(kind: Any) -> bool:
    """Whether several values may be given for an annotation."""
    return any(get_origin(each) in (list, tuple, Sequence) for each in _kinds(kind))


def _check_text(name: str, text: str, *, path: bool) -> None:
    """Refuse what can be no name nor, where it may be one, a path: empty, too long, with a NUL, ..."""
    place, reason = os.path.expanduser(text.removeprefix("folder:")), ""
    try:
        text.encode()
        if path or "\0" in text:
            os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        reason = "there is no such home folder" if place.startswith("~") else ""
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError:
        reason = "it holds characters that are none"
    if not text or reason:
        raise InputError(f"{name} is {_shown(text)}; {reason or 'expected a name or a path'}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping)


def _converted(value: Any, kind: Any, said: bool) -> Any:
    text = value.strip() if said and isinstance(value, str) else None
    kinds: Sequence[Any] = _kinds(kind)
    if len(kinds) > 1:
        if text == "null" and type(None) in kinds:
            return None
        if text and text[0] == "{":
            kinds = sorted(kinds, key=lambda each: not _is_mapping(each))
        elif text and (text[0] == "[" or "," in text):
            kinds = sorted(kinds, key=lambda each: not takes_list(each))
        for each in kinds:
            with suppress(InputError):
                return _converted(value, each, said)
        raise InputError
    origin = get_origin(kind)
    if kind is Any:
        return value
    if kind is type(None):
        if value is None:
            return None
    elif kind is bool:
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if isinstance(value, bool):
            return value
    elif kind in (int, float):
        with suppress(ValueError, OverflowError):
            number = value if text is None else kind(text)
            exact = isinstance(number, Integral if kind is int else Real) and not isinstance(number, bool)
            if exact and math.isfinite(number):
                return kind(number)
    elif origin is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
    elif takes_list(kind):
        if text is not None:
            value = parse_yaml(text) if text.startswith("[") else [w.strip() for w in text.split(",")]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            made = [_converted(each, get_args(kind)[0], said) for each in value]
            return tuple(made) if origin is tuple else made
    elif _is_mapping(kind):
        value = value if text is None else parse_yaml(text)
        if isinstance(value, Mapping):
            return dict(value)
    elif isinstance(value, str | os.PathLike):  # a text or a path
        return os.fspath(value) if kind is str else kind(value)
    raise InputError


def parse_yaml(text: str) -> Any:
    """YAML with the numbers and booleans of its version 1.2: ``1e-3`` is a number, ``on`` a text.

    Raises:
        InputError: it is no YAML.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(str(error).splitlines()[0]) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The arguments that a YAML file holds.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"cannot read the recipe {path}: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"the recipe {path} holds no arguments; expected YAML, a line 'name: value' each")
    return content


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 (as yaml has it)
            first: [
                (tag, match) for tag, match in found if tag.rpartition(":")[2] not in ("bool", "timestamp")
            ]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    boolean, number = re.compile("(?i:true|false)$"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", boolean, list("tTfF"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
