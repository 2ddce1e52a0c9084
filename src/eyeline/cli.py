"""The command line, made by cyclopts from the signatures of the verbs. PyTorch is loaded when a verb runs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, ArgumentCollection, CycloptsError, MissingArgumentError, Parameter, Token
from cyclopts.exceptions import ArgumentOrderError, UnknownOptionError, UnusedCliTokensError

from eyeline import __version__
from eyeline.errors import InputError, TrainingStopped, unknown
from eyeline.kinds import as_kind, expected, read_recipe, takes_list
from eyeline.names import meant
from eyeline.ranks import is_main_process
from eyeline.verbs import VERBS, verb

USAGE = """\
Usage: eyeline VERB [options]
       eyeline VERB --config recipe.yaml [options]
       eyeline VERB --help"""
ABOUT = """\
Teach a small vision network to look where a large one looks.

eyeline train wrn_16_2 cifar10 --out runs/teacher
eyeline distill wrn_16_1 runs/teacher cifar10 --method at+kd"""
HINTS = """\
The arguments that are required may stand first, without their names. A switch needs no value; several \
values are given as a,b,c. A recipe is a YAML file with any of these arguments; what stands beside it on the \
command line counts more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (stopped), 2 (bad input), 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if words[0] in ("help", "version"):
        words = [*words[1:2], f"--{words[0]}"]
    try:
        command, given = _parsed(words)
        outcome = command(*given.args, **given.kwargs)
        if isinstance(outcome, Path) and is_main_process():
            print(outcome)
        elif outcome is not None and is_main_process():
            from eyeline.pages.tables import show

            show(outcome.folder, outcome.result)
    except InputError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as stopped:
        return _fail(stopped if stopped.args else "interrupted", 130)
    except TrainingStopped as error:
        return _fail(error, 1)
    return 0


def _fail(error: object, status: int) -> int:
    if is_main_process():
        # a name may hold anything
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"eyeline: {line}", file=sys.stderr)
    return status


def _parsed(words: Sequence[str]) -> tuple[Callable[..., Any], inspect.BoundArguments]:
    """The function that a command line means, and its arguments.

    Raises:
        InputError: an unknown command or option, a value of the wrong kind, or a required one is missing.
    """
    if words[0] not in (*VERBS, "-h", "--help", "-V", "--version", "--completion"):
        raise unknown("command", words[0], VERBS)
    try:
        helping = not {"-h", "--help"}.isdisjoint(words)
        app = _app(words[:1] if words[0] in VERBS else VERBS, helping)
        command, bound, _ = app.parse_args(_last_of_each(words), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise _in_words(error, words[0]) from error
    bound.apply_defaults()
    return command, bound


def _last_of_each(words: Sequence[str]) -> list[str]:
    """The words without an option that is given again later: the last one counts."""
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    options = [list(words[a:b]) for a, b in pairwise([*starts, len(words)])]
    last = {option[0].partition("=")[0]: option for option in options}
    return [*words[: min(starts, default=len(words))], *chain.from_iterable(last.values())]


def _in_words(error: CycloptsError, command: str) -> InputError:
    """An error of the library, in the words of all others."""
    if isinstance(error.__cause__, InputError):
        return error.__cause__
    parameters = inspect.signature(verb(command) if command in VERBS else main, eval_str=True).parameters
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        near = meant(word.strip("-").replace("-", "_"), [*parameters, "config"])
        hint = f"; did you mean --{near}?" if near else ""
        return InputError(f"unknown option {word}{hint} (eyeline {command} --help)")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name.removeprefix("--")
        wanted = expected(parameters[name].annotation) if name in parameters else "a text"
        return InputError(f"--{name} needs a value: {wanted}")
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        first = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        return InputError(
            f"{error.unused_tokens[0]!r} is one argument too many; expected at most {len(first)} "
            f"without a name ({', '.join(first)})"
        )
    if isinstance(error, ArgumentOrderError) and error.argument is not None:
        given = error.prior_positional_or_keyword_supplied_as_keyword_arguments[0].name
        return InputError(
            f"{error.token!r} has no name, and {given}, which stands before it, has one; give it as "
            f"{error.argument.name} {error.token}"
        )
    return InputError(" ".join(str(error).split()))


# --- what the library is told -------------------------------------------------------------------------------


def _app(verbs: Sequence[str] = VERBS, helping: bool = False) -> App:
    app = App(
        name="eyeline",
        usage=USAGE,
        help=ABOUT,
        help_format="plaintext",
        **(_layout_of_help() if helping else {}),
        version=f"eyeline {__version__}",
        version_flags=["--version", "-V"],
        default_parameter=Parameter(
            name_transform=str, negative=(), allow_repeating=True, json_list=False, show_default=_default
        ),
        end_of_options_delimiter="",
        result_action="return_value",
    )
    for number, name in enumerate(verbs):
        _add(app, name, number)
    app.command(_completion, name="--completion")
    return app


def _layout_of_help() -> dict[str, Any]:
    from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, PanelSpec
    from rich.box import SIMPLE
    from rich.console import Console

    columns = (
        ColumnSpec(renderer=lambda entry: " ".join((*entry.positive_names, *entry.positive_shorts))),
        ColumnSpec(renderer=DescriptionRenderer()),
    )
    formatter = DefaultFormatter(panel_spec=PanelSpec(box=SIMPLE), column_specs=columns, show_metavar=False)
    return {"help_formatter": formatter, "console": Console(width=80, highlight=False)}


def _add(app: App, name: str, number: int) -> None:
    """A verb as a command, whose arguments are given in words or in a recipe."""
    function, recipe = verb(name), dict[str, Any]()
    signature = inspect.signature(function, eval_str=True)

    def command(*first: Any, **given: Any) -> Any:
        given |= zip(signature.parameters, first, strict=False)
        kinds = {n: p.annotation for n, p in signature.parameters.items()}
        return function(
            **{n: True if given[n] == [] and kind is bool else given[n] for n, kind in kinds.items()}
        )

    def with_recipe(app: App, commands: Any, arguments: ArgumentCollection) -> None:
        by_name = {argument.name.removeprefix("--"): argument for argument in arguments}
        if config := by_name.pop("config").tokens:
            recipe.update(read_recipe(path := Path(config[-1].value).expanduser()))
            for given in recipe:
                if given not in by_name:
                    near = meant(str(given), by_name)
                    hint = f"; did you mean {near}?" if near else ""
                    raise InputError(f"unknown argument {given} in {path}{hint} (eyeline {name} --help)")
                if not by_name[given].tokens:
                    by_name[given].append(Token(keyword=given, source=str(path)))
        if missing := [f"--{name}" for name, a in by_name.items() if a.required and not a.tokens]:
            raise InputError(f"{' and '.join(missing)} must be given (eyeline {name} --help)")

    def converted(argument: str, wanted: Any, kind: Any, tokens: Sequence[Token]) -> Any:
        words = [token.value for token in tokens]
        if tokens[0].source != "cli":
            return as_kind(argument, recipe[argument], wanted, said=True)
        if len(words) > 1 and not takes_list(wanted):
            raise InputError(f"--{argument} takes one value, got {' '.join(words)!r}")
        return as_kind(argument, ",".join(words), wanted, said=True)

    parameters = [_told(p, partial(converted, p.name, p.annotation)) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=[*parameters, _CONFIG])  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    required = [p.name.upper() for p in signature.parameters.values() if p.default is p.empty]
    app.command(
        command,
        name=name,
        usage=f"Usage: eyeline {' '.join([name, *required])} [options]\n"
        f"       eyeline {name} --config recipe.yaml [options]",
        help=re.sub(r"(?<!\n)\n(?!\n)", " ", (inspect.getdoc(function) or "").partition("\nArgs:")[0]),
        help_epilogue=HINTS,
        config=with_recipe,
        sort_key=number,
    )


def _told(parameter: inspect.Parameter, converter: Callable[..., Any]) -> inspect.Parameter:
    """A parameter of a verb, of a kind that the library can complete; the converter makes what is wanted."""
    wanted = parameter.annotation
    words: Any = Path if str in (wanted, *get_args(wanted)) else str
    words = wanted if get_origin(wanted) is Literal else Literal["true", "false"] if wanted is bool else words
    if parameter.kind is parameter.KEYWORD_ONLY:
        words = list[words]  # all up to the next option, so that none is taken for an argument without a name
    told = Parameter(
        converter=converter, consume_multiple=int(wanted is not bool), show_choices=wanted is not bool
    )
    return parameter.replace(annotation=Annotated[words, told])


def _default(value: Any) -> str | None:
    """How a default is shown; what None stands for is said in the text."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what completes the words of this command line in bash, zsh or fish."""
    print(_app().generate_completion(shell=shell))


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[Path, Parameter(help="a recipe: a YAML file with any of these arguments")],
)

if __name__ == "__main__":
    sys.exit(main())
