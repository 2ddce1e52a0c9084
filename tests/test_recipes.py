"""Every recipe is the argument list of the command that it names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eyeline.losses import LOSSES
from eyeline.objective.method import resolve_method
from eyeline.settings import Settings
from eyeline.verbs import verb as function_of

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_is_what_its_command_takes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    command = re.search(rf"eyeline (\w+) --config {re.escape(str(path.relative_to(ROOT.parent)))}", text)
    assert command, "the recipe says how it is run"
    verb, recipe = command[1], yaml.safe_load(text)
    taken = inspect.signature(function_of(verb)).parameters
    assert set(recipe) <= set(taken)
    required = {n for n, p in taken.items() if p.default is p.empty}
    assert required - {"settings"} <= set(recipe)
    own = set(inspect.signature(inspect.unwrap(function_of(verb))).parameters)
    options = {name: value for name, value in recipe.items() if name not in own}
    Settings.of(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    methods = recipe.get("methods", [recipe["method"]] if "method" in recipe else [])
    for method in methods.values() if isinstance(methods, dict) else methods:
        resolve_method(method)


def test_the_study_of_every_method_has_every_method() -> None:
    methods = read("fashion_mnist/methods.yaml")["methods"]
    assert set(LOSSES) - {"ce"} <= {name for method in methods.values() for name in resolve_method(method)}


def test_the_map_functions_and_the_layers_are_compared_in_one_protocol() -> None:
    maps = read("fashion_mnist/mapping_functions.yaml")["methods"]
    found = {name: resolve_method(method)["at"] for name, method in maps.items()}
    assert {n: (o["reduce"], o["exponent"]) for n, o in found.items()} == {
        **{"sum^1": ("sum", 1), "sum^2": ("sum", 2), "sum^4": ("sum", 4), "max^1": ("max", 1)}
    }
    whole = read("fashion_mnist/wrn_16_2_to_wrn_16_1.yaml")
    for group in (1, 2, 3):
        one = read(f"fashion_mnist/at_group{group}.yaml")
        assert one.pop("layers") == [f"group{group}"]
        assert {k for k in one if one[k] != whole[k]} == {"out", "methods"}
