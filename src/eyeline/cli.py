"""The command line, made from the signatures of the verbs. Loads PyTorch only when a verb runs."""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from eyeline import __version__, api
from eyeline.errors import InputError, TrainingStopped, unknown
from eyeline.kinds import as_kind, expected, parse_yaml, takes_list
from eyeline.names import meant
from eyeline.ranks import is_main_process

USAGE = """\
usage: eyeline VERB [options]
       eyeline VERB --config recipe.yaml
       eyeline VERB --help

Teach a small vision network to look where a large one looks.

{verbs}

  eyeline train wrn_16_2 cifar10 --out runs/teacher
  eyeline distill wrn_16_1 runs/teacher cifar10 --method at+kd
"""
HINTS = """\
The arguments that are required may stand first, without their names. A switch needs no value; several values
are given as a,b,c. A recipe is a YAML file with any of these arguments; what stands beside it on the command
line counts more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (stopped), 2 (bad input), 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    if not given or given[0] in ("-h", "--help"):
        _print(_usage())
        return 0
    if given[0] in ("-V", "--version", "version"):
        print(f"eyeline {__version__}")
        return 0
    try:
        if given[0] not in api.VERBS:
            raise unknown("command", given[0], api.VERBS)
        verb = getattr(api, given[0])
        if any(argument in ("-h", "--help") for argument in given[1:]):
            _print(_help(verb))
            return 0
        outcome = verb(**_arguments(verb, given[1:]))
        if is_main_process():
            _show(given[0], outcome)
    except InputError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as stopped:
        return _fail(stopped if stopped.args else "interrupted", 130)
    except TrainingStopped as error:
        return _fail(error, 1)
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: object, status: int) -> int:
    if is_main_process():
        print(f"eyeline: {error}", file=sys.stderr)
    return status


def _show(name: str, outcome: Any) -> None:
    """What came out, in a line or a table."""
    if isinstance(outcome, Path):
        print(outcome)
        return
    if name in ("study", "demo"):
        from rich.console import Console

        from eyeline.engine.run import PAGE
        from eyeline.report.tables import protocol, study_table

        shown = Console()
        shown.print(study_table(outcome.result))
        shown.print(protocol(outcome.result), highlight=False, markup=False)
        print(f"\nThe page with the curves and the attention maps: {(outcome.folder / PAGE).resolve()}")
        return
    figures = [
        f"{split} accuracy {100 * outcome.result[f'{split}_accuracy']:.2f} %"
        for split in ("test", "validation")
        if outcome.result.get(f"{split}_accuracy") is not None
    ]
    print(f"{outcome.folder}: {', '.join(figures)}")


# --- from words to arguments --------------------------------------------------------------------------------


def _arguments(verb: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments that the words of a command line mean, checked against the verb's signature.

    Raises:
        InputError: an unknown option, a value of the wrong kind, or a required one that is missing.
    """
    name, parameters = verb.__name__, _parameters(verb)
    options = _options(name, parameters, words)
    recipe: dict[str, Any] = {}
    if "config" in options:
        path = Path(options.pop("config")).expanduser()
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise InputError(f"cannot read the recipe {path}: {reason}") from error
        if not isinstance(content, dict):
            raise InputError(
                f"the recipe {path} holds no arguments; expected YAML, a line 'name: value' each"
            )
        for key in content:
            if key not in parameters:
                near = meant(str(key), parameters)
                hint = f"; did you mean {near}?" if near else ""
                raise InputError(f"unknown argument {key} in {path}{hint} (eyeline {name} --help)")
        recipe = content

    missing = [
        n for n, p in parameters.items() if p.default is p.empty and n not in options and n not in recipe
    ]
    if missing:
        listed = " and ".join(f"--{argument}" for argument in missing)
        raise InputError(f"{listed} must be given (eyeline {name} --help)")

    values = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    for argument, value in {**recipe, **options}.items():
        values[argument] = as_kind(argument, value, parameters[argument].annotation, said=True)
    return values


def _parameters(verb: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(verb, eval_str=True).parameters


def _options(name: str, parameters: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    """Option -> its words: what stands before the first option is for the first parameters."""
    leading = next((i for i, word in enumerate(words) if _is_option(word)), len(words))
    required = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if leading > len(required):
        raise InputError(
            f"{words[len(required)]!r} is one argument too many; expected at most {len(required)} "
            f"without a name ({', '.join(required)})"
        )
    options = dict(zip(required, words[:leading], strict=False))
    rest = list(words[leading:])
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        option = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or option not in (*parameters, "config"):
            near = meant(option.strip("_"), [*parameters, "config"])
            hint = f"; did you mean --{near}?" if near else ""
            raise InputError(f"unknown option {word}{hint} (eyeline {name} --help)")
        values = [value] if equals else []
        while rest and not equals and not _is_option(rest[0]):
            values.append(rest.pop(0))
        kind = parameters[option].annotation if option in parameters else str
        if not values and kind is bool:
            values = ["true"]
        if not values:
            raise InputError(f"--{option} needs a value: {expected(kind)}")
        if len(values) > 1 and not takes_list(kind):
            raise InputError(f"--{option} takes one value, got {' '.join(values)!r}")
        options[option] = ",".join(values)
    return options


def _is_option(word: str) -> bool:
    return word.startswith("-") and re.fullmatch(r"-[\d.].*|-", word) is None  # -1 is a value


# --- help ---------------------------------------------------------------------------------------------------


def _usage() -> str:
    width = 2 + max(map(len, api.VERBS)) + 2
    lines = [
        textwrap.fill(
            _summary(getattr(api, verb)),
            80,
            initial_indent=f"  {verb}".ljust(width),
            subsequent_indent=" " * width,
        )
        for verb in api.VERBS
    ]
    return USAGE.format(verbs="\n".join(lines)).rstrip()


def _summary(verb: Callable[..., Any]) -> str:
    return (inspect.getdoc(verb) or "").splitlines()[0]


def _help(verb: Callable[..., Any]) -> str:
    """What a verb does and each of its arguments, from its docstring and signature, at 80 columns."""
    parameters = _parameters(verb)
    about, _, rest = (inspect.getdoc(verb) or "").partition("\nArgs:\n")
    documented = dict(re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", rest, re.MULTILINE))
    required = [n for n, p in parameters.items() if p.default is p.empty]
    lines = [
        f"usage: eyeline {verb.__name__} {' '.join(n.upper() for n in required)} [options]".replace(
            "  ", " "
        ),
        f"       eyeline {verb.__name__} --config recipe.yaml [options]",
        "",
        *(textwrap.fill(paragraph, 80) + "\n" for paragraph in about.strip().split("\n\n")),
    ]
    options = [("config", "a recipe: a YAML file with any of these arguments", "")]
    for name, parameter in parameters.items():
        text, default = " ".join(documented[name].split()), parameter.default
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
        if not all(choice in text for choice in choices):
            text += f" ({', '.join(choices)})"
        if parameter.default is parameter.empty:
            note = "required"
        elif default is None:
            note = ""  # what happens then is said in the text
        else:
            shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
            note = f"default: {shown.lower() if isinstance(default, bool) else shown}"
        options.append((name, text, note))
    for name, text, note in options:
        body = f"{text} [{note}]" if note else text
        indent = " " * 24
        option = f"  --{name}".ljust(22) + "  "
        if len(option) > len(indent):
            lines.append(option.rstrip())
            option = indent
        lines.append(
            textwrap.fill(body, 80, initial_indent=option, subsequent_indent=indent, break_on_hyphens=False)
        )
    lines += ["", textwrap.fill(HINTS, 80)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
