"""What all verbs have in common. No heavy import: ``eyeline --help`` reads this file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from eyeline.errors import InputError
from eyeline.isolation import as_found
from eyeline.kinds import as_kind
from eyeline.names import meant
from eyeline.settings import Settings, kinds_of_settings

Verb = TypeVar("Verb", bound=Callable[..., Any])


def checked_arguments(verb: Verb) -> Verb:
    """Check the arguments of a verb by their annotations, and leave the caller's process as it was.

    Its ``**settings`` are the fields of Settings, in its signature and documentation too.
    """
    own = inspect.signature(verb, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    takes_settings = len(parameters) < len(own.parameters)
    fields = [f for f in dataclasses.fields(Settings) if takes_settings and f.name not in own.parameters]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=kinds_of_settings()[f.name])
        for f in fields
    ]
    signature = own.replace(parameters=parameters)

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if takes_settings and name not in signature.parameters:
                near = meant(name, signature.parameters)
                raise InputError(f"unknown setting {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            given.arguments[name] = as_kind(name, value, signature.parameters[name].annotation)
        if takes_settings:
            Settings.of(**{k: v for k, v in given.arguments.items() if k not in own.parameters})
        with as_found(*given.arguments.values()):
            return verb(*given.args, **given.kwargs)

    documented = (f"    {field.name}: {field.metadata['doc'].replace('%%', '%')}" for field in fields)
    call.__doc__ = inspect.cleandoc(verb.__doc__ or "").replace(
        "    settings: see below", "\n".join(documented)
    )
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
