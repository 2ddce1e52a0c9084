"""Random command lines and recipes: each does what it says or is refused in one line, and leaves nothing."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.error import URLError

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

import eyeline
from eyeline import create_model
from eyeline.cli import main
from eyeline.errors import TrainingStopped
from eyeline.names import losses_in_source
from eyeline.pages import pictures
from eyeline.verbs import verb as function_of

HERE = "here work begins"
COUNT, PART = 2000, 80
VERBS = ("train", "distill", "study", "remember", "look", "report") * 3 + ("demo",)

GIVEN = r"""
words:| |x|-1|0|1|2|3.0|1e999|nan|-inf|null|true|no|on|[|{|}|[1, 2|{a: b}|{a: {b: [}|[[[[]]]]|a,b|,|a,,b|a=b
words:0x10|1_000| 3 |\u0663|~|.|..|/|/dev/null|/proc/1/mem|folder:|folder:/nowhere|~no-such-user/x|folder:~x
words:a\nb|a\tb|a\rb|a\u2028b|\U0001f4a5|\udcff|*|?|$HOME|%s|{0}|'|"|#|-|--|-x|--epochs|&a|*a|!x|- a|a: b|1:30
words:2024-01-01|!!python/name:os.system|\\
files:file|empty|birds|birds/crow/0.png|bad|one|fits.safetensors|three.safetensors|cut.safetensors|pickle.pt
files:taken|run|run/model.json|run/result.json|broken|broken_study|recipe.yaml|new|new/deep|new.png|new.html
files:link|loop|loop/x|file/x
numbers:1|2|3|0|-1|1.5|0.1|1e-3|1e30|1e-300|1000000|100000000000|null
recipes:- a|a|\0|\tx: 1|{[]: 1}|? [a]\n: b|x: &a [*a]|1: 2|null: 3|a: 1\n---\nb: 2|x: !!binary aGk=
recipes:out: "a\\0b"|out: 2024|out: 2024-01-01|epochs: 010|epochs: 1:30|compile: on|seeds: 1e1
model:wrn_10_1|wrn_10_1|wrn_10_1|wrn_10_1|wrn_10_1|resnet18|torchvision/resnet18|run|wrn_17_1|resnet2O
teacher:run|run|run|run|wrn_16_2.fashion_mnist|wrn_10_1|resnet18|broken|taken
data:fashion_mnist_sample|fashion_mnist_sample|fashion_mnist_sample|folder:birds|folder:bad|folder:one|folder:file|cifar10
images:fashion_mnist_sample|birds|birds/crow/0.png|bad|folder:birds
layers:auto|group1|group1:group2|a:b:c|group1,group3|group9|
method:kd|at|at+kd|ce|att|kd+kd|+|at+|{kd: {temperature: 0}}|{at: 3}|{at: {schedule: x}}|{kd: {weight: 2}}
method:{kd: }|{kd: {weight: 1e-1}}|{1: 2}|{at: {weight: -1}}|{at: {weight: true}}
methods:kd,at|[kd, {at: {}}]|{a: kd, a/: at}|{x: }|{1: kd}|[]|{report: kd}
maps:sum^2|max^1|sum^0|min^2|sum^1e9|sum^2,max^3
seeds:2|0,1|1,1|0|-1
parallel:1|2|0
folder:run|broken|broken_study|taken
memory:new/m|m|taken
weights:fits.safetensors|three.safetensors|cut.safetensors
out:new|new/deep|run|taken|new.png
accelerator:cpu|auto|cuda|tpu
"""
USUAL: dict[str, list[str]] = {}
for line in GIVEN.strip().splitlines():
    key, _, listed = line.partition(":")
    listed = listed.encode("ascii").decode("unicode_escape")
    USUAL.setdefault(key, []).extend(listed.split("|"))
WORDS, FILES, NUMBERS, RECIPES = (USUAL.pop(key) for key in ("words", "files", "numbers", "recipes"))
WORDS += ["9" * 30, "9" * 5000, "x" * 300]
for loss, options in losses_in_source().items():
    USUAL["method"] += [f"{{{loss}: {{{option}: WORD}}}}" for option in (*options, "weight")]
USUAL["methods"] += USUAL["method"]
USUAL |= {
    "student": USUAL["model"],
    **dict.fromkeys(("student_weights", "teacher_weights"), USUAL["weights"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("fuzz")
    for name in ("crow", "owl"):
        for folder in ("birds", "bad", *(["one"] if name == "owl" else [])):
            (place / folder / name).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (20, 20), (i, 0, 0)).save(place / folder / name / f"{i}.png")
    (place / "bad" / "owl" / "3.png").write_bytes(b"no picture")
    for name, classes in (("fits", 2), ("three", 3)):
        save_file(create_model("wrn_10_1", classes).state_dict(), place / f"{name}.safetensors")
    (place / "cut.safetensors").write_bytes((place / "fits.safetensors").read_bytes()[:5000])
    torch.save({"x": Path("x")}, place / "pickle.pt")
    options: dict[str, Any] = {"epochs": 1, "accelerator": "cpu", "progress": False, "train_size": 40}
    eyeline.train("wrn_10_1", "fashion_mnist_sample", str(place / "run"), **options)
    for name, files in (("broken", ("model.json", "result.json")), ("broken_study", ("study.json",))):
        (place / name).mkdir()
        for file in files:
            (place / name / file).write_text("{" if name == "broken" else json.dumps({"kind": "study"}))
    (place / "file").write_text("x")
    (place / "empty").write_text("")
    (place / "recipe.yaml").write_text("epochs: 1\n")
    (place / "taken").mkdir()
    (place / "taken" / "other").write_text("x")
    (place / "link").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "locked").mkdir(mode=0o500)
    yield place
    (place / "locked").chmod(0o700)


def words_of(draw: random.Random, verb: str) -> list[str]:
    """A command line, most of it right."""
    first: list[str] = []
    named: list[str] = []
    parameters = inspect.signature(function_of(verb), eval_str=True).parameters
    for parameter in parameters.values():
        option = "--" + (parameter.name if draw.random() < 0.97 else mistyped(draw, parameter.name))
        value = value_of(draw, parameter)
        if parameter.default is parameter.empty and draw.random() < 0.98:
            if named or draw.random() < 0.3:
                named.append(f"{option}={value}")
            else:
                first.append(value)
        elif parameter.default is not parameter.empty and draw.random() < 2 / len(parameters):
            named += draw.choice([[f"{option}={value}"], [option, value], [option, value], [option]])
    if draw.random() < 0.05:
        named.insert(draw.randrange(len(named) + 1), draw.choice(WORDS))
    return [verb if draw.random() < 0.98 else mistyped(draw, verb), *first, *named]


def value_of(draw: random.Random, parameter: inspect.Parameter) -> str:
    usual = USUAL.get(parameter.name)
    if usual is None:
        kinds = (parameter.annotation, *get_args(parameter.annotation))
        usual = ["true", "false"] if bool in kinds else NUMBERS if {int, float} & {*kinds} else FILES
        usual = [*get_args(parameter.annotation)] if get_origin(parameter.annotation) is Literal else usual
    value = draw.choice(usual if draw.random() < 0.93 else draw.choice([WORDS, FILES, NUMBERS]))
    return value.replace("WORD", draw.choice([*WORDS, *NUMBERS]))


def mistyped(draw: random.Random, word: str) -> str:
    at = draw.randrange(len(word))
    return draw.choice(
        [word[:at] + word[at + 1 :], word + "s", word.upper(), word.replace("_", "-"), word[::-1], ""]
    )


def recipe_of(draw: random.Random, verb: str) -> bytes:
    """A recipe: arguments of every kind, or something else."""
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        float("nan"),
        [],
        [1, "a"],
        {},
        {"a": [1]},
        [[]],
        {"1": {"2": 3}},
    ]
    parameters = list(inspect.signature(function_of(verb), eval_str=True).parameters.values())
    lines = []
    for parameter in parameters[:3] + draw.sample(parameters, min(len(parameters), draw.randrange(4))):
        value = json.dumps(draw.choice(values)) if draw.random() < 0.2 else value_of(draw, parameter)
        lines.append(f"{parameter.name if draw.random() < 0.97 else mistyped(draw, parameter.name)}: {value}")
    text = "\n".join(lines)
    others = ["{" * 99, "[" * 9999, f"{text}\n{draw.choice(RECIPES)}", text[: len(text) // 2], *RECIPES]
    text = text if draw.random() < 0.8 else draw.choice(others)
    content = text.encode("utf-8", "surrogatepass")
    return content if draw.random() < 0.97 else content[:5] + b"\xff\xfe" + content[5:]


def seen(place: Path) -> dict[str, Any]:
    """Every file with its content's size and time."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            facts = (Path(folder) / name).lstat()
            found[f"{folder}/{name}"] = (facts.st_mode, facts.st_size, facts.st_mtime_ns)
    return found


@pytest.mark.whole
@pytest.mark.parametrize("part", range(COUNT // PART))
def test_success_or_one_line(
    part: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    def begin(*_: Any, **__: Any) -> Any:
        raise TrainingStopped(HERE)

    def unreachable(*_: Any, **__: Any) -> Any:
        raise URLError("no network")

    for what in ("runs.folder.RunFolder.claimed", "training.filling.fill"):
        monkeypatch.setattr(f"eyeline.{what}", begin)
    monkeypatch.setattr(pictures, "look_figure", begin)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", unreachable)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", unreachable)
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    (recipe := place.parent / "random.yaml").unlink(missing_ok=True)
    before = seen(place)
    for number in range(PART):
        draw = random.Random(part * PART + number)
        verb = draw.choice(VERBS)
        words = words_of(draw, verb)
        if draw.random() < 0.3:
            recipe.write_bytes(recipe_of(draw, verb))
            words = [verb, "--config", str(recipe), *words[draw.randrange(len(words)) :]]
        told = f"{part}, {number}: {words!r}" + (f" {recipe.read_bytes()!r}" if str(recipe) in words else "")
        try:
            status = main(words)
        except BaseException as error:
            raise AssertionError(told) from error
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("eyeline: ")]
        assert len(errors) == (status != 0), (told, status, err)
        assert status in (0, 2) or errors == [f"eyeline: {HERE}"], (told, status, err)
        assert status == 0 or err.endswith(f"{errors[0]}\n"), (told, err)
        assert not any(word in err for word in ("Traceback", "Warning")), (told, err)
        after = seen(place)
        if status == 0 and words[0] in ("look", "report"):
            before = after  # the picture or page that was asked for
        assert after == before, told
    assert not recwarn.list
