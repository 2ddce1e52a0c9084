from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eyeline import __version__, cli
from eyeline.cli import main
from eyeline.errors import InputError, TrainingStopped
from eyeline.verbs import VERBS, verb

SOURCES = str(Path(cli.__file__).parents[1])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a verb was called with; the verb does nothing."""
    arguments: dict[str, Any] = {}
    for name in VERBS:
        own = verb(name)
        signature = inspect.signature(own, eval_str=True)

        def fake(**given: Any) -> Path:
            arguments.update(given)
            return Path("out")

        fake.__name__, fake.__doc__ = name, own.__doc__
        fake.__signature__ = signature  # type: ignore[attr-defined]
        monkeypatch.setattr(f"eyeline.verbs.{name}.{name}", fake)
    return arguments


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command line that is refused: short, with status 2."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("eyeline: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("eyeline: ").rstrip()


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["look", "-h"], ["tran"]])
def test_no_pytorch_for_help(words: list[str]) -> None:
    code = (
        "import sys; from eyeline.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'timm', 'lightning_fabric', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for parameter in inspect.signature(verb(name)).parameters.values():
        line = text.partition(f"\n  --{parameter.name} ")[2]
        described = " ".join(line.partition("\n  --")[0].split())
        assert len(described) > 10, f"{parameter.name} is not described"
        if parameter.default is parameter.empty:
            assert "[required]" in described
        elif isinstance(parameter.default, bool):
            assert f"[default: {str(parameter.default).lower()}]" in described
        elif isinstance(parameter.default, int | float | str):
            assert f"[default: {parameter.default}]" in described
    for choice in ("crop+flip", "adamw", "cosine", "bf16") if name == "train" else ():
        assert choice in text


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert max(map(len, texts[0].splitlines())) <= 80
    assert all(f"\n  {verb} " in texts[0] for verb in VERBS)
    assert main(["help", "train"]) == 0
    assert "Usage: eyeline train MODEL DATA" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"eyeline {__version__}\n"


def test_python_m_eyeline(tmp_path: Path) -> None:
    for name in ("textwrap", "difflib", "inspect"):  # of a folder of data: not ours to run
        (tmp_path / f"{name}.py").write_text("raise SystemExit('was run')")
    done = subprocess.run(
        [sys.executable, "-m", "eyeline", "distil"],
        env={**os.environ, "PYTHONPATH": SOURCES},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "eyeline: unknown command 'distil'; did you mean 'distill'? (demo, distill,"
    )


# --- words that are right -----------------------------------------------------------------------------------


def test_every_way_to_say_it(called: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "--model", "m", "--data=d", "--epochs", "3", "--batch-size", "7", "--out", "o"]) == 0
    )
    assert capsys.readouterr().out == "out\n"
    long = dict(called)
    assert (long["model"], long["data"], long["out"], long["epochs"], long["batch_size"]) == (
        "m",
        "d",
        "o",
        3,
        7,
    )
    assert main(["train", "m", "d", "o", "--batch_size=7", "--epochs=3"]) == 0
    assert called == long
    defaults = {n: p.default for n, p in inspect.signature(verb("train")).parameters.items()}
    assert {k: v for k, v in long.items() if k not in ("model", "data", "out", "epochs", "batch_size")} == {
        k: v for k, v in defaults.items() if k not in ("model", "data", "out", "epochs", "batch_size")
    }


def test_switches(called: dict[str, Any]) -> None:
    for words, expected in (
        (["--resume"], True),
        (["--resume", "--epochs", "3"], True),
        (["--resume", "true"], True),
        (["--resume=false"], False),
        ([], False),
    ):
        assert main(["train", "m", "d", *words]) == 0
        assert called["resume"] is expected


def test_values_of_every_kind(called: dict[str, Any]) -> None:
    words = ["--learning_rate", "1e-3", "--milestones", "0.5,0.75", "--devices", "2", "--weight_decay", "0"]
    assert main(["train", "m", "d", *words, "--seed", "-3", "--train_size", "null"]) == 0
    assert (called["learning_rate"], called["weight_decay"], called["seed"]) == (0.001, 0.0, -3)
    assert (tuple(called["milestones"]), called["devices"], called["train_size"]) == ((0.5, 0.75), 2, None)
    assert main(["train", "m", "d", "--devices", "auto", "--milestones", "0.5"]) == 0
    assert (called["devices"], tuple(called["milestones"])) == ("auto", (0.5,))


@pytest.mark.parametrize(
    "words",
    [
        ["--methods", "kd,at+kd", "--seeds", "0,2"],
        ["--methods", "kd", "at+kd", "--seeds", "0", "2"],
        ["--methods=[kd, at+kd]", "--seeds=[0, 2]"],
    ],
)
def test_several_values(called: dict[str, Any], words: list[str]) -> None:
    assert main(["study", "s", "t", "d", *words]) == 0
    assert (called["methods"], called["seeds"], called["layers"]) == (["kd", "at+kd"], [0, 2], "auto")
    assert (
        main(["study", "s", "t", "d", "--seeds", "3", "--methods", "kd", "--layers", "block2:layer3,fc"]) == 0
    )
    assert (called["methods"], called["seeds"], called["layers"]) == (["kd"], 3, ["block2:layer3", "fc"])


def test_a_mapping(called: dict[str, Any]) -> None:
    assert main(["distill", "s", "t", "d", "--method", "{at: {weight: 10, exponent: 4}, kd: {}}"]) == 0
    assert called["method"] == {"at": {"weight": 10, "exponent": 4}, "kd": {}}


def test_a_recipe_and_what_stands_beside_it(called: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "student: s\nteacher: t\ndata: d\nmethod: {at: {weight: 10}}\nepochs: 3\nmilestones: [0.5]\n"
        "learning_rate: 1e-3\nweights_are: null\n".replace("weights_are", "student_weights")
    )
    for words in (["--config", str(recipe), "--epochs", "5"], ["--epochs", "5", f"--config={recipe}"]):
        assert main(["distill", *words]) == 0
        assert (called["student"], called["teacher"], called["data"]) == ("s", "t", "d")
        assert (called["method"], called["epochs"]) == ({"at": {"weight": 10}}, 5)
        assert (tuple(called["milestones"]), called["learning_rate"]) == ((0.5,), 0.001)


# --- words that are wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "distil",
            "unknown command 'distil'; did you mean 'distill'? "
            "(demo, distill, look, remember, report, study, train)",
        ),
        ("train m d --epoch 3", "unknown option --epoch; did you mean --epochs? (eyeline train --help)"),
        (
            "train m d --batchsize 3",
            "unknown option --batchsize; did you mean --batch_size? (eyeline train --help)",
        ),
        ("train m d -x", "unknown option -x (eyeline train --help)"),
        ("train m d --epochs x", "epochs is 'x'; expected a whole number"),
        ("train m d --epochs 1.5", "epochs is '1.5'; expected a whole number"),
        ("train m d --learning_rate fast", "learning_rate is 'fast'; expected a number"),
        ("train m d --resume maybe", "resume is 'maybe'; expected true or false"),
        ("train m d --milestones 0.3,z", "milestones is '0.3,z'; expected several numbers, as a,b,c"),
        ("train m d --optimizer adam", "unknown optimizer 'adam'; did you mean 'adamw'? (adamw, sgd)"),
        ("train m d --data", "--data needs a value: a text"),
        ("train m d --epochs 1 2", "--epochs takes one value, got '1 2'"),
        (
            "train m d --out my run",
            "'run' is one argument too many; expected at most 3 without a name (model, data, out)",
        ),
        ("train m d --seed --epochs 3", "--seed needs a value: a whole number"),
        ("train m d --resume o", "resume is 'o'; expected true or false"),
        ("train m d --no-out", "unknown option --no-out; did you mean --out? (eyeline train --help)"),
        ("train m d -- x", "unknown option -- (eyeline train --help)"),
        ("train m d --out.x 3", "unknown option --out.x; did you mean --out? (eyeline train --help)"),
        ("--foo", "unknown command '--foo' (demo, distill, look, remember, report, study, train)"),
        ("--completion tcsh", 'Invalid value "tcsh" for SHELL. Choose from: "bash", "zsh", "fish".'),
        (
            "train m d o p",
            "'p' is one argument too many; expected at most 3 without a name (model, data, out)",
        ),
        (
            "train --model m d o",
            "'d' has no name, and --model, which stands before it, has one; give it as --data d",
        ),
        ("train", "--model and --data must be given (eyeline train --help)"),
        ("train m", "--data must be given (eyeline train --help)"),
        ("train m d --config nowhere.yaml", "cannot read the recipe nowhere.yaml: No such file or directory"),
        ("study s t d --seeds x", "seeds is 'x'; expected a whole number or several whole numbers, as a,b,c"),
        ("train m d --batch_size 0", "batch_size is 0; expected a whole number of at least 1"),
        ("train m d --learning_rate -1", "learning_rate is -1.0; expected a number above 0"),
        ("train m nodata", "unknown data set 'nodata'"),
        ("distill wrn_10_1 t fashion_mnist_sample --method att", "unknown loss 'att'; did you mean 'at'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    message = refused(capsys, *words.split())
    assert message == expected or (expected[-1] in "'?" and message.startswith(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "unknown argument epoch in r.yaml; did you mean epochs? (eyeline train --help)"),
        ("epochs: [3]", "epochs is [3]; expected a whole number"),
        ("- a", "the recipe r.yaml holds no arguments; expected YAML, a line 'name: value' each"),
        ("a: b: c", "cannot read the recipe r.yaml: mapping values are not allowed here"),
        ("\x00", "cannot read the recipe r.yaml: "),
    ],
)
def test_a_recipe_that_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path, text: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    message = refused(capsys, "train", "m", "d", "--config", "r.yaml")
    assert message.startswith(expected) if expected.endswith(" ") else message == expected


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("no"), 2, "eyeline: no\n"),
        (TrainingStopped("nan"), 1, "eyeline: nan\n"),
        (KeyboardInterrupt("stopped at step 3"), 130, "eyeline: stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "eyeline: interrupted\n"),
    ],
)
def test_exit_status(
    monkeypatch: Any, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    def report(folder: str) -> None:
        """Fail."""
        raise error

    monkeypatch.setattr("eyeline.verbs.report.report", report)
    assert main(["report", "x"]) == status
    assert capsys.readouterr().err == message


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: Any) -> None:
    def report(folder: str) -> None:
        """Fail."""
        raise ZeroDivisionError

    monkeypatch.setattr("eyeline.verbs.report.report", report)
    with pytest.raises(ZeroDivisionError):
        main(["report", "x"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_verbs_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "learning_rate", "adamw", "validate_every", "config"):
        assert word in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not there")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("eyeline d", {"demo", "distill"}),
        ("eyeline train m d --lea", {"--learning_rate"}),
        ("eyeline train m d --optimizer ", {"sgd", "adamw"}),
        ("eyeline train m d --resume ", {"true", "false"}),
        ("eyeline train --config r", {"recipe.yaml"}),
        ("eyeline train m d --out r", {"recipe.yaml"}),
    ],
)
def test_completion_in_bash(words: str, completed: set[str], tmp_path: Path, capsys: Any) -> None:
    main(["--completion", "bash"])
    (tmp_path / "recipe.yaml").touch()
    given = words.split(" ")
    call = f"COMP_WORDS=({' '.join(repr(w) for w in given)}); COMP_CWORD={len(given) - 1}; _eyeline eyeline"
    script = capsys.readouterr().out + f"\n{call}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert set(done.stdout.split()) == completed


@pytest.mark.whole
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_tab_key_completes_in_a_shell_that_was_told_as_the_readme_says(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not there")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"eyeline --completion {shell} +> ~/(\S+)", readme)
    main(["--completion", shell])
    place = tmp_path / told
    place.parent.mkdir(parents=True)
    place.write_text(capsys.readouterr().out)
    asked = ["eyeline dis", "eyeline train m d --learn", "eyeline distill a b c --schedule cosi"]
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "vt100", "HISTFILE": ""}
    environment.pop("XDG_CONFIG_HOME", None)
    (tmp_path / "eyeline").write_text("#!/bin/sh\n")  # fish completes commands that there are
    (tmp_path / "eyeline").chmod(0o755)
    environment["PATH"] += os.pathsep + str(tmp_path)
    if shell == "fish":
        ask = "; ".join(f"complete -C '{words}'" for words in asked)
        done = subprocess.run(
            ["fish", "-c", ask], env=environment, capture_output=True, text=True, check=True
        )
        found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    else:
        start = {
            "bash": f"source {place}\n",
            "zsh": f"bindkey -e; fpath=({place.parent} $fpath); autoload -Uz compinit; compinit -u -D\n",
        }[shell]
        # the tab, then what prints the line as it is now
        keys = [f"{words}\t\x01echo \x05 >> out\n" for words in asked]
        plain = ["--norc", "--noprofile"] if shell == "bash" else ["-f"]
        ours, theirs = os.openpty()
        with subprocess.Popen(
            [shell, *plain, "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path
        ) as process:
            os.close(theirs)
            os.write(ours, "".join([start, *keys, "exit\n"]).encode())
            hanging = threading.Timer(60, process.kill)
            hanging.start()
            with suppress(OSError):  # the terminal is closed
                while os.read(ours, 65536):
                    pass
            hanging.cancel()
        os.close(ours)
        found = [line.split()[-1] for line in (tmp_path / "out").read_text().splitlines()]
    assert found == ["distill", "--learning_rate", "cosine"]


def test_help_into_a_pipe_that_closes() -> None:
    command = f"{sys.executable} -m eyeline distill --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: eyeline distill")
    assert done.stderr == ""


def test_of_an_option_that_is_given_twice_the_last_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["look", "wrn_10_1", "fashion_mnist_sample", "--count", "0", "--out", str(tmp_path / "a.png")]
    assert cli.main([*words, "--maps=sum^2", "--count=2", "--maps", "max^1"]) == 0
    assert (tmp_path / "a.png").exists()
    assert cli.main([*words, "--count", "-1"]) == 2
    assert "count is -1" in capsys.readouterr().err
