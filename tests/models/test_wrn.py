"""Wide residual networks: sizes, arithmetic, and what timm knows of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from eyeline import InputError, Observer, create_model
from eyeline.models.weights import parameter_count
from eyeline.models.wrn import SIZES, WideResNet
from eyeline.names import wide
from networks import perturbed
from oracles.wrn import wide_resnet


@pytest.mark.parametrize(
    ("name", "ten", "hundred"),
    [
        ("wrn_16_1", 175_066, 180_916),
        ("wrn_16_2", 691_674, 703_284),
        ("wrn_40_1", 563_930, 569_780),
        ("wrn_40_2", 2_243_546, 2_255_156),
    ],
)
def test_parameters_and_stages(name: str, ten: int, hundred: int) -> None:
    assert parameter_count(create_model(name, num_classes=10)) == ten
    model = create_model(name, num_classes=100)
    assert parameter_count(model) == hundred
    k = int(name[-1])
    observer = Observer(model)
    stages = [(16 * k, 32, 32), (32 * k, 16, 16), (64 * k, 8, 8)]
    assert [layer.shape for layer in observer.layers] == stages
    told = [(entry["num_chs"], entry["module"], entry["reduction"]) for entry in model.feature_info]  # type: ignore[union-attr]
    assert told == [(16 * k, "group1", 1), (32 * k, "group2", 2), (64 * k, "group3", 4)]


def test_28_10_has_the_published_size() -> None:
    """36.5 M in table 4 of the paper; built without memory, as only its shapes count."""
    with torch.device("meta"):
        assert round(parameter_count(WideResNet(28, 10)) / 1e6, 1) == 36.5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "channels", "size"), [("wrn_16_1", 3, (16, 12)), ("wrn_22_2", 1, (8, 8))])
def test_forward_is_the_plain_arithmetic(
    name: str, channels: int, size: tuple[int, int], training: bool
) -> None:
    torch.manual_seed(0)
    model = perturbed(create_model(name, num_classes=7, in_chans=channels)).double().train(training)
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    logits, groups = wide_resnet({k: v.clone() for k, v in model.state_dict().items()}, x, training)
    seen = Observer(model)(x)
    torch.testing.assert_close(seen.logits, logits)
    for ours, plain in zip(seen.features, groups, strict=True):
        torch.testing.assert_close(ours, plain)
        assert (ours < 0).any()  # the residual sums, signed: before batch norm and ReLU


def test_initialisation() -> None:
    """Normal with variance 2 / fan-in; the classifier's bias 0 (the authors' code)."""
    torch.manual_seed(0)
    model = WideResNet(16, 4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            if module.weight.numel() > 2000:
                assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert not model.head.bias.any()
    model.reset_classifier(500)
    assert model.head.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    assert not model.head.bias.any()


def test_options() -> None:
    x = torch.randn(2, 1, 16, 16)
    model = create_model("wrn_10_2", num_classes=4, in_chans=1)
    assert model(x).shape == (2, 4)
    assert create_model("wrn_10_1").num_classes == 10
    assert create_model("wrn_10_3").num_classes == 10  # of a size that timm was not told
    assert WideResNet(10, 3)(torch.randn(1, 3, 16, 16)).shape == (1, 10)
    headless = create_model("wrn_10_2", num_classes=0, in_chans=1)
    assert headless(x).shape == (2, 128)
    model.reset_classifier(6)  # type: ignore[operator]
    assert model(x).shape == (2, 6)
    assert model.get_classifier() is model.head  # type: ignore[operator]
    model.reset_classifier(0)  # type: ignore[operator]
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["wrn_17_1", "wrn_4_1", "wrn_16_0", "wrn_0_1"])
def test_impossible_sizes(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name} does not exist; expected a depth of 6n \+ 4.*width of at least 1"
    ):
        create_model(name)


def test_unknown_options_are_refused_and_neutral_ones_taken() -> None:
    create_model("wrn_10_1", drop_rate=0.0, global_pool="avg", drop_path_rate=None)
    with pytest.raises(InputError, match=r"WideResNet has no option drop_rate=0.5"):
        create_model("wrn_10_1", drop_rate=0.5)


def test_names() -> None:
    assert wide("wrn_40_2") == (40, 2)
    assert wide("wrn_40_2x") is None
    assert wide("resnet18") is None


def test_timm_makes_them_too() -> None:
    names = timm.list_models("wrn_*")
    assert {f"wrn_{depth}_{width}" for depth, width in SIZES} <= set(names)
    assert {"wrn_16_1", "wrn_16_2", "wrn_28_10", "wrn_40_1", "wrn_40_2"} <= set(names)
    assert not timm.list_models("wrn_*", pretrained=True)
    model = timm.create_model("wrn_16_2", num_classes=5, in_chans=1)
    assert isinstance(model, WideResNet)
    assert model(torch.randn(1, 1, 16, 16)).shape == (1, 5)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    features = timm.create_model("wrn_10_1", features_only=True)
    assert [f.shape[1:] for f in features(torch.randn(1, 3, 16, 16))] == [
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
    ]


@pytest.mark.whole
@pytest.mark.parametrize(
    "code",
    [
        "import eyeline, timm; assert timm.is_model('wrn_28_10'); timm.create_model('wrn_16_1')",
        "import timm, eyeline; assert timm.is_model('wrn_28_10')",
        "import eyeline, importlib.util as u; u.find_spec('timm'); import timm.layers\n"
        "timm.create_model('wrn_16_1')",
        "import eyeline.models, timm; assert timm.is_model('wrn_28_10')",
        "import sys, eyeline; assert not {'torch', 'timm'} & set(sys.modules)",
        "import sys; from eyeline.cli import main; main([]); assert not {'torch', 'timm'} & set(sys.modules)",
    ],
)
@pytest.mark.whole
def test_importing_eyeline_is_enough_for_timm_and_light(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
