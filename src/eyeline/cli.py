"""The command line, made from the signatures of the verbs. Loads PyTorch only when a verb runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from eyeline import __version__, api
from eyeline.errors import InputError, unknown

USAGE = """\
usage: eyeline VERB [options]        eyeline VERB --help
       eyeline VERB --config recipe.yaml

Teach a small vision network to look where a large one looks.

{verbs}

  eyeline distill --student wrn_16_1 --teacher runs/teacher --data cifar10 --method at+kd
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (stopped), 2 (bad input), 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if given[0] in ("-V", "--version", "version"):
        print(f"eyeline {__version__}")
        return 0
    try:
        if given[0] not in api.VERBS:
            raise unknown("command", given[0], api.VERBS)
        verb = getattr(api, given[0])
        _run(verb, given[0], given[1:])
    except InputError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as stopped:
        return _fail(stopped if stopped.args else "interrupted", 130)
    except RuntimeError as error:
        if type(error).__name__ != "TrainingStopped":
            raise
        return _fail(error, 1)
    return 0


def _run(verb: Callable[..., Any], name: str, given: list[str]) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"eyeline {name}", description=(verb.__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--config", action="config", help="a recipe: a YAML file with any of these arguments")
    parser.add_function_arguments(verb)
    parsed = parser.parse_args(_plain_options(verb, given)).as_dict()
    parsed.pop("config")
    verb(**parsed)


def _plain_options(verb: Callable[..., Any], given: list[str]) -> list[str]:
    """Let arguments before the first option stand for the first parameters, and ``--flag`` for ``--flag true``."""
    parameters = inspect.signature(verb).parameters
    leading = next((i for i, argument in enumerate(given) if argument.startswith("-")), len(given))
    if leading > len(parameters):
        raise InputError(f"{leading} arguments before the first option; expected at most {len(parameters)}")
    plain = [f"--{name}={value}" for name, value in zip(parameters, given[:leading], strict=False)]
    flags = {f"--{name}" for name, p in parameters.items() if isinstance(p.default, bool)}
    rest = given[leading:]
    for argument, following in zip(rest, [*rest[1:], "--"], strict=True):
        alone = argument in flags and following.startswith("-")
        plain.append(f"{argument}=true" if alone else argument)
    return plain


def _usage() -> str:
    lines = [f"  {v:<9} {(getattr(api, v).__doc__ or '').strip().splitlines()[0]}" for v in api.VERBS]
    return USAGE.format(verbs="\n".join(lines))


def _fail(error: object, status: int) -> int:
    print(f"eyeline: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
