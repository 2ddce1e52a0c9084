from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import mypy.api
import numpy as np
import pytest

import eyeline
from eyeline.errors import InputError
from eyeline.kinds import as_kind, parse_yaml
from eyeline.settings import Settings, SettingsButMemory, SettingsGiven, kinds_of_settings
from eyeline.verbs import VERBS
from eyeline.verbs import verb as function_of

Names = Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any]


@pytest.mark.parametrize(
    ("value", "kind", "made"),
    [
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float | None, 0.5),
        (None, int | None, None),
        ((0.1, 1), tuple[float, ...], (0.1, 1.0)),
        (range(3), int | Sequence[int], [0, 1, 2]),
        (Path("a"), str, "a"),
        ("a", str | Path, "a"),
        ("auto", int | Literal["auto"], "auto"),
        ("kd", Names, "kd"),
        (["kd", {"at": {}}], Names, ["kd", {"at": {}}]),
        ("3", str | Any, "3"),
    ],
    ids=str,
)
def test_values_of_python(value: Any, kind: Any, made: Any) -> None:
    given = as_kind("x", value, kind)
    assert given == made
    assert type(given) is type(made)


@pytest.mark.parametrize(
    ("text", "kind", "made"),
    [
        ("3", int | None, 3),
        ("null", int | None, None),
        ("1e-3", float | None, 0.001),
        ("True", bool, True),
        ("0.5,1", tuple[float, ...], (0.5, 1.0)),
        ("[0.5, 1]", tuple[float, ...], (0.5, 1.0)),
        ("3", int | Sequence[int], 3),
        ("0,2", int | Sequence[int], [0, 2]),
        ("2", int | Literal["auto"], 2),
        ("a", str | Sequence[str], "a"),
        ("a, b", str | Sequence[str], ["a", "b"]),
        ("kd", Names, ["kd"]),
        (
            "{at: {weight: 1e3, x: off}, kd}",
            Names,
            {"at": {"weight": 1e3, "x": "off"}, "kd": None},
        ),
        ("on", Literal["auto", "on"], "on"),
        ("{", str | Mapping[str, Any], "{"),
    ],
)
def test_words(text: str, kind: Any, made: Any) -> None:
    assert as_kind("x", text, kind, said=True) == made


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, int, "a whole number"),
        (1.5, int | None, "a whole number"),
        ("3", int, "a whole number"),
        (False, float, "a number"),
        (float("nan"), float, "a finite number"),
        (1e400, float, "a finite number"),
        (1, bool, "true or false"),
        (3, str | None, "a text"),
        ("0.5", tuple[float, ...], "several numbers, as a,b,c"),
        ([1, True], int | Sequence[int], "a whole number or several whole numbers, as a,b,c"),
        ({1}, Sequence[int], "several whole numbers, as a,b,c"),
        (["a"], Mapping[str, Any], "a mapping"),
    ],
    ids=str,
)
def test_values_of_another_kind(value: Any, kind: Any, expected: str) -> None:
    with pytest.raises(InputError) as refused:
        as_kind("x", value, kind)
    assert str(refused.value) == f"x is {value!r}; expected {expected}"


def test_many_names_in_one_text_are_no_path() -> None:
    text = ",".join(["stages.2.blocks.0:layer3.0"] * 12)
    assert as_kind("layers", text, str | Sequence[str]) == text
    for bad in ("", "a\0b", "\udcff"):
        with pytest.raises(InputError, match=r"^layers is '"):
            as_kind("layers", bad, str | Sequence[str])


@pytest.mark.parametrize(
    "text",
    ["", "a\0b", "\udcff", "x" * 300, "folder:" + "x" * 300, "~no-such-user/x"],
    ids=lambda text: ascii(text)[:20],
)
def test_a_text_that_can_be_no_name(text: str) -> None:
    for kind in (str, str | Path, str | Any):
        with pytest.raises(
            InputError, match=r"^out is '.*; (expected a name|there is no|it holds|File name)"
        ):
            as_kind("out", text, kind)


def test_what_is_long_is_shortened() -> None:
    with pytest.raises(InputError) as refused:
        as_kind("seeds", "9" * 5000, int, said=True)
    assert len(str(refused.value)) < 150


def test_yaml_as_people_mean_it() -> None:
    assert parse_yaml("{a: 1e-3, b: on, c: 2024-01-01, d: true, e: 7, f: 1.5, g: .5e3, h: null}") == {
        **{"a": 1e-3, "b": "on", "c": "2024-01-01", "d": True, "e": 7, "f": 1.5, "g": 500.0, "h": None}
    }
    for text in ("{a: ", "[" * 9000, "!!python/name:os.system", "{[]: 1}"):
        with pytest.raises(InputError):
            parse_yaml(text)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Settings)])
def test_every_setting_is_of_its_kind(name: str) -> None:
    wrong: list[Any] = [object(), [object()], float("inf")]
    wrong += [1, "no", None] if kinds_of_settings()[name] is bool else [True, [True]]
    for value in wrong:
        with pytest.raises(InputError, match=f"^(unknown )?{name} (is )?"):
            Settings.of(**{name: value})


@pytest.mark.parametrize(
    "given",
    [{"seed": 1.5}, {"devices": 0}, {"devices": -1}, {"workers": "a"}, {"milestones": [0.5, "z"]}],
    ids=str,
)
def test_settings_that_cannot_be(given: dict[str, Any]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(InputError) as refused:
        Settings.of(**given)
    assert str(refused.value).startswith(f"{name} is {value!r}; expected ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_a_verb_is_of_its_kind(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyeline.verbs._common.as_found", lambda *_: pytest.fail("work was begun"))
    parameters = inspect.signature(function_of(verb)).parameters
    required = {n: "x" for n, p in parameters.items() if p.default is p.empty}
    for name, parameter in parameters.items():
        if Any not in getattr(parameter.annotation, "__args__", ()):
            with pytest.raises(InputError, match=f"^(unknown )?{name} (is )?"):
                getattr(eyeline, verb)(**{**required, name: object()})


def test_the_settings_of_a_verb_are_typed_as_the_settings() -> None:
    assert get_type_hints(SettingsGiven) == kinds_of_settings()
    assert get_type_hints(SettingsButMemory).keys() == kinds_of_settings().keys() - {"memory"}
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    assert {name: defaults[name] for name in SettingsGiven.__optional_keys__} == defaults  # none is required


@pytest.mark.whole
def test_a_type_checker_sees_a_wrong_setting(tmp_path: Path) -> None:
    lines = {
        'train("a", "b", epochs=3, memory="m")': None,
        'train("a", "b", epochs="x")': 'incompatible type "str"; expected "int"',
        'distill("a", "b", "c", epoch=1)': 'Unexpected keyword argument "epoch"',
        'study("a", "b", "c", precision="float8")': "expected \"Literal['auto', 'float32', 'bf16']\"",
        'remember("a", "b", "c", "m", views=2)': None,
    }
    program = "\n".join(["from eyeline import distill, remember, study, train", *lines, ""])
    (tmp_path / "program.py").write_text(program)
    config = Path(__file__).parents[1] / "pyproject.toml"
    command = ["--config-file", str(config), "--cache-dir", str(tmp_path), str(tmp_path / "program.py")]
    told = mypy.api.run(command)[0]
    for number, wanted in enumerate(lines.values(), 2):
        found = [line for line in told.splitlines() if f"program.py:{number}: error" in line]
        assert [wanted in line for line in found if wanted] == [True] * (wanted is not None), told
