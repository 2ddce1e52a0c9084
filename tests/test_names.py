from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import timm
import torchvision

import eyeline.cli
from eyeline.errors import InputError
from eyeline.models import EMBEDDED
from eyeline.names import NETWORKS, losses, losses_in_source, networks_in_source

DISTILL = "distill resnet20 resnet56 cifar10"
TYPOS = {
    f"{DISTILL} --method att": "unknown loss 'att'; did you mean 'at'?",
    f"{DISTILL} --method {{kd: {{T: 4}}}}": "unknown option of loss 'kd' 'T'; did you mean 'temperature'?",
    f"{DISTILL} --method {{at: {{schedule: cosin}}}}": "unknown schedule 'cosin'; did you mean 'cosine'?",
    f"{DISTILL} --method {{low: {{loss: att}}}}": "unknown loss 'att'; did you mean 'at'?",
    f"{DISTILL} --method {{low: {{loss: at, layer: a}}}}": (
        "unknown option of loss 'at' 'layer'; did you mean 'layers'?"
    ),
    f"{DISTILL} --method {{at: {{layers: []}}}}": "layers of term 'at' are []; expected 'auto', or names",
    f"{DISTILL} --method {{kd: {{loss: at}}}}": "term 'kd' is of loss 'at'; expected another name, as",
    f"{DISTILL} --method {{loss: {{loss: at}}}}": "a term is called 'loss'; expected a letter, then up to 39",
    f"{DISTILL} --schedule cosin": "unknown schedule 'cosin'; did you mean 'cosine'?",
    f"{DISTILL} --epochs x": "epochs is 'x'; expected a whole number",
    f"{DISTILL} --epochs 0": "epochs is 0; expected a whole number of at least 1",
    "study resnet20 resnet56 cifar10 --methods kd,att": "unknown loss 'att'; did you mean 'at'?",
    "study resnet20 resnet56 cifar10 --methods {a: {att: }}": "unknown loss 'att'; did you mean 'at'?",
    "remember resnet20 resnet56 cifar10 m --methods kd,att": "unknown loss 'att'; did you mean 'at'?",
    "distill resnet20 resnet56 cifar11": "unknown data set 'cifar11'; did you mean 'cifar10'?",
    "train resnet20 folder:nowhere": "there is no folder nowhere",
    "train resnet21 cifar10": "unknown model 'resnet21'; did you mean 'resnet",
    "train wrn_17_1 cifar10": "wrn_17_1 does not exist; expected a depth of 6n + 4",
    "train vgg8_cifa cifar10": "unknown model 'vgg8_cifa'; did you mean 'vgg8_cifar'?",
    "train torchvision/resnet81 cifar10": "unknown torchvision model 'resnet81'; did you mean 'resnet18'?",
    "distill resnet20 runs/nowhere cifar10": "model 'runs/nowhere' is neither a run folder that exists nor a",
    "look resnet20 nowhere": "unknown image file, folder of images or data set 'nowhere'",
    "report nowhere": "nowhere has neither study.json nor result.json",
}


def test_a_typo_is_answered_without_pytorch() -> None:
    code = (
        "import json, re, sys; from eyeline.cli import main\n"
        "for words in json.load(sys.stdin):\n"
        "    assert main(re.findall(r'\\S*{.*}|\\S+', words)) == 2\n"
        "    assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(TYPOS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stderr.splitlines(), TYPOS.values(), strict=True):
        assert line.startswith(f"eyeline: {expected}")


def test_names_are_those_that_there_are() -> None:
    assert dict(losses_in_source()) == dict(losses())
    known = set(timm.list_models())
    ours = {name for name in known if timm.model_entrypoint(name).__module__.startswith("eyeline.")}
    assert set(NETWORKS) == {*ours, *EMBEDDED}
    assert set(networks_in_source("timm")) == known - ours
    theirs = torchvision.models.list_models(module=torchvision.models)
    assert sorted(networks_in_source("torchvision")) == sorted(theirs)


@pytest.mark.parametrize(
    ("verb", "given", "meant"),
    [
        ("train", "lr", "learning_rate"),
        ("train", "wd", "weight_decay"),
        ("train", "bs", "batch_size"),
        ("distill", "T", "method '{kd: {temperature: 4}}'"),
        ("distill", "alpha", "method '{kd: {weight: 0.9}}'"),
        ("study", "beta", "methods '{NAME: {at: {weight: 1000}}}'"),
        ("train", "T", None),
    ],
)
def test_short_names_of_the_field(
    verb: str, given: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eyeline.cli.main([verb, *"abcd"[: 2 + (verb != "train")], f"--{given}", "1"]) == 2
    hint = f"; did you mean --{meant}?" if meant else ""
    assert capsys.readouterr().err == f"eyeline: unknown option --{given}{hint} (eyeline {verb} --help)\n"
    arguments: dict[str, Any] = {given: 1}
    with pytest.raises(InputError) as refused:
        getattr(eyeline, verb)(*"abcd"[: 2 + (verb != "train")], **arguments)
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert str(refused.value) == f"unknown setting {given!r}{hint}"


def test_the_method_that_a_hint_shows_is_one() -> None:
    from eyeline.names import _OF_A_LOSS
    from eyeline.objective.method import resolve_method

    for method in _OF_A_LOSS.values():
        resolve_method(eyeline.kinds.parse_yaml(method))
