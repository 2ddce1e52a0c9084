"""The networks for small images: published sizes, stages, arithmetic, gradients, layers and pairs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eyeline import InputError, Observer, create_model
from eyeline.models.staged import StagedNetwork
from eyeline.models.weights import load_weights, parameter_count
from eyeline.observe import Layer, Probe, find_layers, pair_layers, shared_input_shape
from networks import perturbed
from oracles.resnet import resnet
from oracles.shufflenet import shufflenet

pytestmark = pytest.mark.whole

Shapes = list[tuple[int, int, int]]


def thirds(*channels: int, side: int = 32) -> Shapes:
    return [(c, side >> i, side >> i) for i, c in enumerate(channels)]


# learnable parameters at 100 classes and stages at 32x32, of the common CIFAR-100 distillation benchmark
PUBLISHED: dict[str, tuple[int, Shapes]] = {
    "wrn_16_1": (180_916, thirds(16, 32, 64)),
    "wrn_16_2": (703_284, thirds(32, 64, 128)),
    "wrn_40_1": (569_780, thirds(16, 32, 64)),
    "wrn_40_2": (2_255_156, thirds(32, 64, 128)),
    "resnet20": (278_324, thirds(16, 32, 64)),
    "resnet32": (472_756, thirds(16, 32, 64)),
    "resnet56": (861_620, thirds(16, 32, 64)),
    "resnet110": (1_736_564, thirds(16, 32, 64)),
    "resnet8x4": (1_233_540, thirds(64, 128, 256)),
    "resnet32x4": (7_433_860, thirds(64, 128, 256)),
    "resnet50_cifar": (23_705_252, thirds(256, 512, 1024, 2048)),
    "vgg8_cifar": (3_965_028, [*thirds(128, 256, 512, side=16), (512, 4, 4)]),
    "vgg13_cifar": (9_462_180, [*thirds(128, 256, 512, side=16), (512, 4, 4)]),
    "mobilenetv2_half_cifar": (812_836, thirds(12, 16, 48, 160, side=16)),
    "shufflenetv1_cifar": (949_258, thirds(240, 480, 960, side=16)),
    "shufflenetv2_cifar": (1_355_528, thirds(116, 232, 464, side=16)),
}
# at 10 classes; published are 1 M and 0.2 M
NIN: dict[str, tuple[int, Shapes]] = {
    "nin_wide": (1_005_642, thirds(96, 192, 192)),
    "nin_wide_nobn": (1_004_042, thirds(96, 192, 192)),
    "nin_thin": (206_834, thirds(40, 88, 88)),
    "nin_thin_nobn": (206_106, thirds(40, 88, 88)),
}
NETWORKS = {**PUBLISHED, **NIN}
SIGNED = ("wrn", "mobilenet")
"""Their stages do not end with a ReLU."""

every = pytest.mark.parametrize("name", NETWORKS)
each_family = pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "vgg8_cifar",
        "mobilenetv2_half_cifar",
        "shufflenetv1_cifar",
        "shufflenetv2_cifar",
        "nin_thin",
    ],
)


@cache
def network(name: str) -> StagedNetwork:
    """One, shared by the tests that do not change it."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5).eval()
    assert isinstance(model, StagedNetwork)
    return model


@cache
def layers(name: str) -> tuple[Layer, ...]:
    return find_layers(network(name))


def stage_names(model: nn.Module) -> list[str]:
    return [entry["module"] for entry in model.feature_info]  # type: ignore[union-attr]


def seen(
    model: nn.Module, images: Tensor, names: list[str]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, and what the modules of these names answer and start from; on the meta device too."""
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            outputs[name], inputs[name] = output, args[0]

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return logits, outputs, inputs


def last_relu(model: nn.Module, stage: str) -> str:
    modules = model.get_submodule(stage).named_modules(prefix=stage)
    return [name for name, module in modules if isinstance(module, nn.ReLU)][-1]


# --- sizes and shapes -----------------------------------------------------------------------------------


@every
def test_parameters_and_stages(name: str) -> None:
    parameters, stages = NETWORKS[name]
    with torch.device("meta"):
        model = create_model(name, num_classes=100 if name in PUBLISHED else 10).eval()
        assert parameter_count(model) == parameters
        _, features, _ = seen(model, torch.empty(1, 3, 32, 32), stage_names(model))
    assert [tuple(f.shape[1:]) for f in features.values()] == stages
    told = [(entry["num_chs"], 32 // entry["reduction"]) for entry in model.feature_info]  # type: ignore[union-attr]
    assert told == [shape[:2] for shape in stages]


@every
def test_any_size_and_one_channel(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7, in_chans=1).eval()
    for size in ((16, 16), (28, 28), (64, 39)):
        logits, features, _ = seen(model, torch.empty(2, 1, *size, device="meta"), stage_names(model))
        assert logits.shape == (2, 7)
        for feature, (channels, height, _) in zip(features.values(), NETWORKS[name][1], strict=True):
            expected = [side * height / 32 for side in size]
            assert feature.shape[1] == channels
            assert all(abs(a - b) < 1 for a, b in zip(feature.shape[2:], expected, strict=True))


def test_our_names_are_known_at_once() -> None:
    """In a process that has imported none of them."""
    code = "import eyeline; eyeline.create_model('resnet20', 10); import timm; timm.create_model('resnet56')"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **path}, check=True)


@every
def test_what_timm_knows(name: str) -> None:
    assert timm.is_model(name)
    assert not timm.is_model_pretrained(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, in_chans=1).eval()
        assert model(torch.empty(2, 1, 32, 32)).shape == (2, model.num_features)
        model.reset_classifier(6)
        assert model(torch.empty(2, 1, 32, 32)).shape == (2, 6)
        features = timm.create_model(name, features_only=True).eval()
        shapes = [tuple(f.shape[1:]) for f in features(torch.empty(1, 3, 32, 32))]
    assert shapes == NETWORKS[name][1]
    config = model.pretrained_cfg
    assert config["num_classes"] == 10
    assert config["input_size"] == (3, 32, 32)
    assert model.get_submodule(config["first_conv"]).in_channels == 1
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert isinstance(model.get_classifier(), nn.Linear)


def test_the_documented_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (.*?) \|", page, re.MULTILINE)
    told = {name: (count, shapes) for name, count, shapes in rows}
    assert told.keys() == NETWORKS.keys()
    for name, (parameters, stages) in NETWORKS.items():
        extra = 90 * (stages[-1][0] + 1) if name in NIN else 0  # from 10 classes to 100
        shown = " ".join(f"({c},{h},{w})" for c, h, w in stages)
        assert told[name] == (f"{parameters + extra:,}", shown)


def test_unknown_options_are_refused() -> None:
    for name in ("resnet20", "nin_thin"):
        with pytest.raises(InputError, match=r"has no option drop_rate=0.5; expected num_classes, in_chans"):
            create_model(name, drop_rate=0.5)
        create_model(name, drop_rate=0.0, global_pool="avg")


# --- arithmetic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "size"), [("resnet20", (12, 9)), ("resnet8x4", (8, 8)), ("resnet50_cifar", (16, 16))]
)
def test_residual_networks_are_the_plain_arithmetic(name: str, size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(0)
    model = perturbed(create_model(name, num_classes=4, in_chans=2)).double().train(training)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    logits, outputs, sums = resnet({k: v.clone() for k, v in model.state_dict().items()}, x, training)
    relus = [last_relu(model, stage) for stage in stage_names(model)]
    ours, after, before = seen(model, x, relus)
    torch.testing.assert_close(ours, logits)
    for relu, output, total in zip(relus, outputs, sums, strict=True):
        torch.testing.assert_close(after[relu], output)
        torch.testing.assert_close(before[relu], total)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_shuffle_networks_are_the_plain_arithmetic(version: int, training: bool) -> None:
    torch.manual_seed(0)
    model = perturbed(create_model(f"shufflenetv{version}_cifar", num_classes=4)).double().train(training)
    x = torch.randn(2, 3, 16, 11, dtype=torch.float64)
    logits, stages = shufflenet(version, {k: v.clone() for k, v in model.state_dict().items()}, x, training)
    ours, features, _ = seen(model, x, stage_names(model))
    torch.testing.assert_close(ours, logits)
    for stage, expected in zip(features.values(), stages, strict=True):
        torch.testing.assert_close(stage, expected)


@every
def test_class_activation_maps_average_to_the_logits(name: str) -> None:
    model = network(name)
    with torch.no_grad():
        logits, _, pooled = seen(model, torch.randn(2, 3, 16, 16), ["pool"])
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    maps = torch.einsum("nchw,kc->nkhw", pooled["pool"], head.weight)
    torch.testing.assert_close(maps.mean((2, 3)) + head.bias, logits, rtol=1e-4, atol=1e-5)


@every
def test_pre_activations_can_be_observed(name: str) -> None:
    """The last ReLU of a stage answers the stage's output and leaves its own input alone."""
    model = network(name)
    stages = stage_names(model)
    relus = [] if name.startswith(SIGNED) else [last_relu(model, stage) for stage in stages]
    with torch.no_grad():
        _, outputs, inputs = seen(model, torch.randn(2, 3, 32, 32), [*stages, *relus])
    for stage, relu in zip(stages, relus or stages, strict=True):
        before = inputs[relu] if relus else outputs[stage]
        assert (before < 0).any()
        assert torch.equal(outputs[stage], before.clamp(min=0) if relus else before)


@pytest.mark.parametrize(
    ("name", "variance", "classifier"),
    [
        ("nin_wide_nobn", lambda i, o, _: 2 / i, (2 / 192) ** 0.5),
        ("resnet32x4", lambda i, o, _: 2 / o, (1 / 3 / 256) ** 0.5),
        ("vgg8_cifar", lambda i, o, _: 2 / o, 0.01),
        ("mobilenetv2_half_cifar", lambda i, o, g: 2 / (o * g), 0.01),
        ("shufflenetv1_cifar", lambda i, o, _: 1 / 3 / i, (1 / 3 / 960) ** 0.5),
    ],
)
def test_initialisation(name: str, variance: Any, classifier: float) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            area = module.kernel_size[0] ** 2
            fans = area * module.in_channels // module.groups, area * module.out_channels // module.groups
            expected = variance(*fans, module.groups) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
    model.reset_classifier(200)
    assert model.get_classifier().weight.std().item() == pytest.approx(classifier, rel=0.1)


def test_signals_keep_their_size_without_norms() -> None:
    torch.manual_seed(0)
    model = create_model("nin_wide_nobn")
    assert not any(t.any() for name, t in model.named_parameters() if name.endswith("bias"))
    _, features, _ = seen(model, torch.randn(8, 3, 16, 16), stage_names(model))
    assert 0.05 < features["stage3"].square().mean().item() < 5


# --- training -------------------------------------------------------------------------------------------


@every
def test_a_step_lowers_the_loss_through_every_parameter(name: str) -> None:
    torch.manual_seed(1)
    model = create_model(name, num_classes=3)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    norm = 0.0
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.isfinite().all(), parameter
        if tensor.ndim > 1:
            assert tensor.grad.any(), parameter
        norm += tensor.grad.square().sum().item()
    with torch.no_grad():  # to first order, this step takes 2 % of the loss away
        for tensor in model.parameters():
            tensor -= 0.02 * loss.item() / norm * tensor.grad
        after = nn.functional.cross_entropy(model(x), y).item()
    assert after == pytest.approx(0.98 * loss.item(), abs=0.015 * loss.item())


@each_family
def test_training_and_evaluation(name: str) -> None:
    torch.manual_seed(2)
    model = create_model(name, num_classes=3, in_chans=1)
    x = torch.randn(3, 1, 16, 16)
    state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    with torch.no_grad():
        model(x)
        moved = model.state_dict()
        assert state
        assert all(not torch.equal(v, moved[k]) for k, v in state.items())
        model.eval()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        together = model(x)
        alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@each_family
def test_weights_round_trip(name: str, tmp_path: Path) -> None:
    save_file(network(name).state_dict(), tmp_path / "w.safetensors")
    model = create_model(name, num_classes=5).eval()
    load_weights(model, tmp_path / "w.safetensors")
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), network(name)(x))
    for options, told in (
        ({"num_classes": 6}, "has 5 classes, the network 6"),
        ({"in_chans": 1}, "images of 3 channels"),
    ):
        other: dict[str, Any] = {"num_classes": 5, **options}
        with pytest.raises(InputError, match=told):
            load_weights(create_model(name, **other), tmp_path / "w.safetensors")


# --- layers and pairs -----------------------------------------------------------------------------------


@every
def test_layers_are_found_by_themselves(name: str) -> None:
    """At the stages; of two with one resolution, at the second."""
    names = stage_names(network(name))
    stages = dict(zip(names, NETWORKS[name][1], strict=True))
    last = {shape[1:]: stage for stage, shape in stages.items()}
    assert {layer.name: layer.shape for layer in layers(name)} == {s: stages[s] for s in last.values()}
    assert not any(layer.overwritten for layer in layers(name))
    assert [layer.shape for layer in Probe(network(name)).named(names)] == NETWORKS[name][1]
    assert list(last.values()) == names or name.startswith("vgg")


@pytest.mark.parametrize(
    ("teacher", "student", "pairs"),
    [
        ("resnet56", "resnet20", "stage1:stage1 stage2:stage2 stage3:stage3"),
        ("resnet110", "resnet20", "stage1:stage1 stage2:stage2 stage3:stage3"),
        ("resnet110", "resnet32", "stage1:stage1 stage2:stage2 stage3:stage3"),
        ("resnet32x4", "resnet8x4", "stage1:stage1 stage2:stage2 stage3:stage3"),
        ("wrn_40_2", "wrn_16_2", "group1:group1 group2:group2 group3:group3"),
        ("wrn_40_2", "wrn_40_1", "group1:group1 group2:group2 group3:group3"),
        ("vgg13_cifar", "vgg8_cifar", "stage1:stage1 stage2:stage2 stage4:stage4"),
        ("resnet32x4", "shufflenetv1_cifar", "stage2:stage1 stage3:stage2"),
        ("resnet32x4", "shufflenetv2_cifar", "stage2:stage1 stage3:stage2"),
        ("wrn_40_2", "shufflenetv1_cifar", "group2:stage1 group3:stage2"),
        ("vgg13_cifar", "mobilenetv2_half_cifar", "stage1:stage1 stage2:stage2 stage4:stage3"),
        ("resnet50_cifar", "mobilenetv2_half_cifar", "stage2:stage1 stage3:stage2 stage4:stage3"),
        ("resnet50_cifar", "vgg8_cifar", "stage2:stage1 stage3:stage2 stage4:stage4"),
        ("nin_wide", "nin_thin", "stage1:stage1 stage2:stage2 stage3:stage3"),
        ("wrn_16_2", "nin_thin_nobn", "group1:stage1 group2:stage2 group3:stage3"),
    ],
)
def test_pairs_of_the_benchmark(teacher: str, student: str, pairs: str) -> None:
    found = pair_layers(layers(student), layers(teacher))
    assert " ".join(f"{theirs.name}:{ours.name}" for ours, theirs in found) == pairs
    assert all(ours.resolution == theirs.resolution for ours, theirs in found)


def test_pairs_on_images_of_another_size() -> None:
    models = network("shufflenetv1_cifar"), network("wrn_40_2")
    assert shared_input_shape(*models) == (3, 32, 32)
    found = [find_layers(model, (3, 28, 20)) for model in models]
    assert [ours.resolution for ours, _ in pair_layers(*found)] == [(14, 10), (7, 5)]
    assert len(Observer(models[0], input_shape=(3, 28, 20)).layers) == 3
