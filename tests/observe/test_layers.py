"""The layers that are found by themselves, how they are paired, and that looking for them changes nothing."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from eyeline import InputError, create_model
from eyeline.observe import (
    Head,
    Layer,
    Place,
    Probe,
    evaluation_mode,
    find_layers,
    named_pairs,
    pair_layers,
    shared_input_shape,
)
from networks import Answers, Plain

SMALL = (3, 64, 64)


Shape = tuple[int, int, int] | None


def named_layers(model: nn.Module, names: list[str], shape: Shape = None) -> tuple[Layer, ...]:
    return Probe(model, shape).named(names)


def find_head(model: nn.Module, shape: Shape = None) -> Head:
    return Probe(model, shape).head


def find_pre_activations(
    model: nn.Module, layers: tuple[Layer, ...], shape: Shape = None
) -> tuple[Place, ...]:
    return Probe(model, shape).pre_activations(layers)


def probe_output(model: nn.Module, shape: Shape = None) -> tuple[int, ...]:
    return Probe(model, shape).answer


def found(model: nn.Module, shape: tuple[int, int, int] | None = SMALL) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in find_layers(model, shape)}


# --- what is found --------------------------------------------------------------------------------------


def test_own_networks() -> None:
    assert found(create_model("wrn_16_2"), None) == {
        "group1": (32, 32, 32),
        "group2": (64, 16, 16),
        "group3": (128, 8, 8),
    }
    assert found(create_model("wrn_10_1", in_chans=1), (1, 28, 20)) == {
        "group1": (16, 28, 20),
        "group2": (32, 14, 10),
        "group3": (64, 7, 5),
    }


@pytest.mark.parametrize(
    ("name", "options", "names"),
    [
        ("resnet18", {}, ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv3_small_050", {}, ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
        ("efficientnet_lite0", {}, ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
        (
            "densenet121",
            {},
            ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
        ),
        (
            "vgg11",
            {"mlp_ratio": 0.002},
            ["features.4", "features.9", "features.14", "features.19", "features.20"],
        ),
        ("convnext_atto", {}, ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("regnetx_002", {}, ["s1", "s2", "s3", "s4"]),
        ("repvgg_a0", {}, ["stages.0", "stages.1", "stages.2", "final_conv"]),
    ],
)
def test_timm(name: str, options: dict[str, float], names: list[str]) -> None:
    model = timm.create_model(name, num_classes=3, **options)
    layers = find_layers(model, SMALL)
    assert [layer.name for layer in layers] == names
    resolutions = [layer.resolution[0] for layer in layers]
    assert resolutions == sorted(set(resolutions), reverse=True)
    told = {entry["module"]: entry["num_chs"] for entry in model.feature_info}
    assert all(told[layer.name] == layer.shape[0] for layer in layers)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("squeezenet1_1", ["features.4", "features.7", "classifier.2"]),
        ("mobilenet_v2", ["features.1", "features.3", "features.6", "features.13", "features"]),
        ("shufflenet_v2_x0_5", ["stage2", "stage3", "conv5"]),
        (
            "regnet_y_400mf",
            ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output"],
        ),
    ],
)
def test_torchvision(name: str, names: list[str]) -> None:
    assert list(found(torchvision.models.get_model(name, weights=None, num_classes=3))) == names


def test_layer_norm_is_not_taken_for_the_stage_it_follows() -> None:
    """Its sum of squares over the channels is the same at every position: a flat map."""
    model = torchvision.models.convnext._convnext(
        [
            torchvision.models.convnext.CNBlockConfig(8, 16, 1),
            torchvision.models.convnext.CNBlockConfig(16, None, 1),
        ],
        0.0,
        None,
        False,
    )
    assert list(found(model)) == ["features.1", "features"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mambaout_femto", "torchvision/vit_b_32"])
def test_no_feature_maps_with_channels_first(name: str) -> None:
    if name.startswith("torchvision"):
        model: nn.Module = torchvision.models.VisionTransformer(64, 32, 1, 2, 8, 16)
    else:
        model = timm.create_model(name, depth=1) if name.startswith("vit") else timm.create_model(name)
    shape = (3, 224, 224) if name.startswith("vit") else SMALL
    with pytest.raises(InputError, match=r"no layer of .* convolutional network"):
        find_layers(model, shape)


def test_user_networks() -> None:
    assert found(Plain()) == {"stage1": (4, 64, 64), "stage2": (6, 32, 32), "stage3": (8, 16, 16)}
    assert list(found(Plain(), (3, 24, 40)).values()) == [(4, 24, 40), (6, 12, 20), (8, 6, 10)]
    sequence = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    assert found(sequence) == {"4": (6, 32, 32), "7": (8, 16, 16)}


def test_convolutions_written_as_functions_count() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Kernel(3, 4, 1), Kernel(4, 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)).mean((2, 3))

    class Kernel(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
            self.stride = stride

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, stride=self.stride, padding=1)

    assert found(Functional()) == {"second": (6, 32, 32)}


def test_inside_of_a_block_at_another_resolution_is_not_taken() -> None:
    class Down(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.wide = nn.Conv2d(
                inputs, outputs, 3, padding=1
            )  # still at the resolution of the stage before
            self.down = nn.Conv2d(outputs, outputs, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.wide(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 4, 3, padding=1), Down(4, 6), Down(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(self.one(x))).mean((2, 3))

    assert list(found(Net())) == ["two", "three"]


# --- which axis holds the channels ----------------------------------------------------------------------


class Turned(nn.Module):
    """What a module answers, with its axes in another order."""

    def __init__(self, module: nn.Module, *order: int) -> None:
        super().__init__()
        self.inner = module
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).permute(*self.order)


class ChannelsLast(nn.Module):
    """Two convolutions, the first of which answers ``[N, H, W, C]``; the head may bind the image's size."""

    def __init__(self, channels: int, one_size: bool, side: int = 16) -> None:
        super().__init__()
        self.low = Turned(nn.Conv2d(3, channels, 3, padding=1), 0, 2, 3, 1)
        self.high = nn.Conv2d(channels, 4, 3, 2, 1)
        self.head = nn.LazyLinear(5) if one_size else nn.Linear(4, 5)
        self(torch.zeros(1, 3, side, side))

    def forward(self, x: Tensor) -> Tensor:
        x = self.high(self.low(x).permute(0, 3, 1, 2))
        return self.head(x.flatten(1) if self.head.in_features != 4 else x.mean((2, 3)))


def small_swin(library: str) -> nn.Module:
    if library == "timm":  # takes images of one size only
        return timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1, 2), num_heads=(1, 2, 2)
        )
    return torchvision.models.SwinTransformer([4, 4], 24, [1, 2, 2], [2, 4, 4], [4, 4])


@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize("channels", [4, 16])
def test_a_layer_with_its_channels_last_is_refused(channels: int, one_size: bool) -> None:
    """Also where C == H == W, and in a network that takes images of one size only."""
    net, shape = ChannelsLast(channels, one_size), (3, 16, 16)
    with pytest.raises(InputError) as error:
        named_layers(net, ["high", "low"], shape)
    assert str(error.value) == (
        f"layer 'low' of ChannelsLast answers a tensor of shape [N, 16, 16, {channels}], with the channels "
        "behind the positions as in [N, H, W, C]; expected [N, C, H, W]; the nearest layer of that kind is "
        "'low.inner'"
    )
    assert named_layers(net, ["low.inner"], shape)[0].shape == (channels, 16, 16)
    assert found(net, shape) == {"high": (4, 8, 8)}


@pytest.mark.parametrize(
    ("library", "name", "near"),
    [
        ("timm", "layers.1", "patch_embed.proj"),
        ("timm", "layers.2.blocks.1", "patch_embed.proj"),
        ("timm", "norm", "patch_embed.proj"),
        ("torchvision", "features.1", "features.0.0"),
        ("torchvision", "features.3.0.mlp", "features.0.0"),
        ("torchvision", "norm", "permute"),
    ],
)
def test_swin_is_refused(library: str, name: str, near: str) -> None:
    model = small_swin(library)
    shape = (3, 56, 56) if library == "timm" else (3, 32, 32)
    with pytest.raises(InputError, match=rf"{name}' .* as in \[N, H, W, C\]; .* nearest .* is '{near}'"):
        named_layers(model, [name], shape)
    assert named_layers(model, [near], shape)


def test_a_map_of_one_position_with_its_channels_last_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[N, 1, 1, 96\], with the channels behind the positions"):
        named_layers(small_swin("torchvision"), ["features.5"], (3, 16, 16))


@pytest.mark.parametrize("side", [32, 64])
def test_layers_within_convnext(side: int) -> None:
    """Its blocks answer ``[N, C, H, W]``, and turn the axes within."""
    model = torchvision.models.ConvNeXt([torchvision.models.convnext.CNBlockConfig(8, None, 2)])
    for name, near in (
        ("features.1.0.block.2", "features.1.0.block"),
        ("features.1.1.block.3", "features.1.1.block"),
    ):
        with pytest.raises(InputError, match=rf"as in \[N, H, W, C\]; .* is '{near}'"):
            named_layers(model, [name], (3, side, side))
        assert named_layers(model, [near], (3, side, side))


def test_windows_in_the_place_of_images_are_refused() -> None:
    class Windows(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stage1(self.conv(x)).unflatten(2, (4, -1)).unflatten(4, (4, -1))
            return self.stage2(x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)).mean((2, 3)).view(-1, 16 * 6)

    with pytest.raises(InputError, match=r"answers a tensor of shape \[16 N, 6, 2, 2\]; expected one tensor"):
        named_layers(Windows(), ["stage2"], (3, 16, 16))


def test_a_network_with_its_channels_last_is_not_read_where_they_are_as_many_as_the_rows() -> None:
    with pytest.raises(InputError, match="no layer of MambaOut answers a feature map"):
        find_layers(timm.create_model("mambaout_femto", depths=(1, 1, 1, 1)), (3, 192, 192))  # 48 of 48x48


class Everywhere(nn.Module):
    """Every value that it answers depends on all positions alike."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels * height * width, channels * height * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.flatten(1)).view_as(x)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(8, 8, 8), (2, 8, 8), (32, 8, 8), (8, 8, 4), (8, 2, 8), (16, 2, 2), (4, 16, 2), (1, 2, 16), (1, 1, 8)],
)
@pytest.mark.parametrize("one_size", [False, True])
def test_no_layer_with_its_channels_in_front_is_refused(
    channels: int, height: int, width: int, one_size: bool
) -> None:
    """C equal to H or W, more or fewer, few positions, global operations, pooling to one size."""
    for seed in range(5):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), SqueezeExcitation(channels),
            nn.Conv2d(channels, channels, (2 * height - 1, 2 * width - 1), padding="same"),  # of all
            Everywhere(channels, height, width) if one_size else nn.Identity(), nn.BatchNorm2d(channels),
            nn.AdaptiveAvgPool2d((5, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5),
        )  # fmt: skip
        names = [*map(str, range(8)), "2.gate"]
        assert len(named_layers(net, names, (3, height, width))) == len(names)


# --- looking changes nothing (METHODS, pitfall 6) -------------------------------------------------------


class Restless(Plain):
    """Moves one buffer and replaces another in every forward pass, draws random numbers, has a mixed mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moved", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(()))
        self.stage2.eval()
        self.stage1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.moved += 1
        self.replaced = self.replaced + 1
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_probe_leaves_everything_as_it_was(training: bool, fails: bool) -> None:
    net = Restless()
    net.training = training
    net.stage3.train(training)
    net.dropout.train()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    assert len(set(modes)) == 2
    learnable = [p.requires_grad for p in net.parameters()]
    replaced = net.replaced
    torch.manual_seed(3)
    random_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    )
    for look in (find_layers, find_head, probe_output, lambda m, s: named_layers(m, ["stage1"], s)):
        if fails:
            with pytest.raises(InputError):
                look(net, (1, 16, 16))
        else:
            look(net, (3, 16, 16))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert net.replaced is replaced
    assert [module.training for module in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == learnable
    assert [p.grad is None for p in net.parameters()].count(False) == 1
    assert torch.is_grad_enabled()
    assert all(not module._forward_hooks for module in net.modules())


def test_evaluation_mode_restores_each_part() -> None:
    net = Plain().train()
    net.stage2.eval()
    modes = [module.training for module in net.modules()]
    with evaluation_mode(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluation_mode(net):
        raise ZeroDivisionError
    assert [module.training for module in net.modules()] == modes


def test_probe_runs_where_and_in_what_the_weights_are() -> None:
    assert probe_output(Plain(classes=7).double(), SMALL) == (7,)
    assert probe_output(Plain(classes=7).bfloat16(), SMALL) == (7,)


def test_input_shape_is_found() -> None:
    assert probe_output(Plain(channels=2)) == (5,)
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 4))
    assert probe_output(flat) == (4,)  # 28x28
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 15 * 11, 4))
    assert probe_output(odd, (1, 17, 13)) == (4,)
    with pytest.raises(
        InputError, match=r"Sequential does not run on an image.*give input_shape=\(C, H, W\)"
    ):
        probe_output(odd)
    assert probe_output(Answers(lambda z: {"logits": z}), SMALL) == ()

    class FoldsFirst(nn.Module):
        """Its first convolution does not see the image's channels."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pixel_unshuffle(x, 2)).mean((2, 3))

    assert probe_output(FoldsFirst()) == (4,)


# --- pairing --------------------------------------------------------------------------------------------


def layers(*shapes: tuple[int, int, int], prefix: str = "layer") -> list[Layer]:
    return [Layer(f"{prefix}{i}", shape) for i, shape in enumerate(shapes)]


def paired(student: list[Layer], teacher: list[Layer]) -> list[tuple[str, str]]:
    return [(a.name, b.name) for a, b in pair_layers(student, teacher)]


def test_equal_resolutions_pair_whatever_the_channels() -> None:
    student = layers((4, 32, 32), (8, 16, 16), (16, 8, 8))
    teacher = layers((64, 32, 32), (64, 16, 16), (64, 8, 8), prefix="t")
    assert paired(student, teacher) == [("layer0", "t0"), ("layer1", "t1"), ("layer2", "t2")]


def test_partly_common_resolutions_pair_only_those() -> None:
    student = layers((4, 32, 32), (8, 16, 16), (16, 8, 8))
    teacher = layers((64, 16, 16), (64, 8, 8), (64, 4, 4), prefix="t")
    assert paired(student, teacher) == [("layer1", "t0"), ("layer2", "t1")]


def test_height_and_width_both_count() -> None:
    student = layers((4, 16, 8), (4, 8, 4))
    teacher = layers((4, 16, 4), (4, 8, 4), prefix="t")
    assert paired(student, teacher) == [("layer1", "t1")]


def test_nothing_in_common_but_equally_many_pair_in_order() -> None:
    student = layers((4, 30, 30), (8, 15, 15))
    teacher = layers((64, 28, 28), (64, 14, 14), prefix="t")
    assert paired(student, teacher) == [("layer0", "t0"), ("layer1", "t1")]


def test_impossible_pairs_are_named() -> None:
    with pytest.raises(InputError) as error:
        pair_layers(layers((4, 30, 20)), layers((64, 28, 28), (64, 14, 14), prefix="t"))
    for part in ("layer0 30x20", "t0 28x28", "t1 14x14", "student_layer:teacher_layer"):
        assert part in str(error.value)


def test_named_pairs() -> None:
    assert named_pairs(["a:b", " c : d.1 ", "e"]) == (["a", "c", "e"], ["b", "d.1", "e"])


def test_networks_are_compared_at_one_input_shape() -> None:
    assert shared_input_shape(Plain(), create_model("wrn_10_1")) == (3, 32, 32)
    assert shared_input_shape(create_model("wrn_10_1"), Plain()) == (3, 32, 32)
    flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 4))
    assert shared_input_shape(flat, create_model("wrn_10_1")) == (3, 28, 28)
    assert shared_input_shape(Plain(channels=1), Plain(channels=3)) is None


# --- the classifier and the features that it averages ---------------------------------------------------


def torchvision_network(name: str) -> nn.Module:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=3, **options)


@pytest.mark.parametrize(
    ("name", "classifier", "shape"),
    [
        ("resnet18", "fc", (3, 2, 2)),
        ("densenet121", "classifier", (3, 2, 2)),
        ("regnetx_002", "head.fc", (3, 2, 2)),
        ("resnetv2_50", "head.fc", (3, 2, 2)),  # a 1x1 convolution behind the pooling
        ("torchvision/resnet18", "fc", (3, 2, 2)),
        ("torchvision/mobilenet_v2", "classifier.1", (3, 2, 2)),
        ("torchvision/densenet121", "classifier", (3, 2, 2)),  # a functional ReLU in front of the pooling
    ],
)
def test_heads(name: str, classifier: str, shape: tuple[int, int, int]) -> None:
    library, _, rest = name.rpartition("/")
    model = torchvision_network(rest) if library else timm.create_model(rest, num_classes=3)
    head = find_head(model, SMALL)
    assert (head.classifier, head.shape) == (classifier, shape)


class Headed(nn.Module):
    """A convolution, a ReLU, and what ``head`` makes of it."""

    def __init__(self, *head: nn.Module, stride: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride, 1)
        self.relu = nn.ReLU(inplace)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)))


def pooled(*layers: nn.Module) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers]


@pytest.mark.parametrize(
    "head",
    [
        pooled(nn.Linear(8, 5)),
        pooled(nn.Dropout(0.5), nn.Linear(8, 5, bias=False)),
        [nn.AvgPool2d(16), nn.Conv2d(8, 5, 1), nn.Flatten()],
        [nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Conv2d(8, 5, 1, bias=False), nn.AvgPool2d(16), nn.Flatten()],
    ],
    ids=["linear", "dropout", "convolution behind", "convolution in front", "dropout and convolution"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_heads_of_user_networks(head: list[nn.Module], inplace: bool) -> None:
    assert find_head(Headed(*head, inplace=inplace), (3, 16, 16)).shape == (5, 16, 16)


@pytest.mark.parametrize(
    "head",
    [
        [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)],
        [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)],
        pooled(nn.Linear(8, 8), nn.Linear(8, 5)),
        pooled(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)),
        pooled(nn.LayerNorm(8), nn.Linear(8, 5)),
        pooled(nn.BatchNorm1d(8), nn.Linear(8, 5)),
        [nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)],
        pooled(nn.Linear(8, 5), nn.Softplus()),
        [nn.Conv2d(8, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Conv2d(8, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Conv2d(8, 5, 1, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Conv2d(8, 5, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.Flatten(), nn.Linear(8 * 16 * 16, 5)],
    ],
    ids=[
        *("max pooling", "four positions", "two linear layers", "multi-layer", "layer norm", "batch norm"),
        *("batch norm of maps", "softplus behind", "relu behind the convolution", "3x3 convolution"),
        *("padding", "stride", "no pooling"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-13])
def test_what_has_no_class_maps(head: list[nn.Module], scale: float) -> None:
    """Also where all values are tiny, and so near one another."""
    torch.manual_seed(0)
    model = Headed(*head, inplace=True)
    with torch.no_grad():
        model.conv.weight *= scale
        model.conv.bias *= scale
        for module in head if scale < 1 else ():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.bias)  # would hide the rest
    with pytest.raises(InputError, match=r"Headed has no class maps: they need one linear classifier"):
        find_head(model, (3, 16, 16))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenetv3_small_050", 64),
        ("convnext_atto", 64),
        ("torchvision/squeezenet1_1", 64),
        ("torchvision/alexnet", 64),
        ("torchvision/vit", 64),
        ("torchvision/vgg", 32),
    ],
)
def test_known_networks_that_have_no_class_maps(name: str, size: int) -> None:
    library, _, rest = name.rpartition("/")
    if rest == "vit":
        model: nn.Module = torchvision.models.VisionTransformer(64, 32, 1, 2, 8, 16)
    elif rest == "vgg":  # as vgg16, with few channels
        model = torchvision.models.VGG(torchvision.models.vgg.make_layers([4, "M", 8, "M", 512, "M"]), 3)
    else:
        model = torchvision_network(rest) if library else timm.create_model(rest, num_classes=3)
    with pytest.raises(InputError, match="has no class maps: they need one linear classifier"):
        find_head(model, (3, size, size))


def test_features_of_one_position_say_so() -> None:
    model = torchvision_network("resnet18")
    with pytest.raises(
        InputError,
        match=r"ResNet has no class maps for images of 32x32: its last features have one position; images of "
        r"64x64 would have 2x2 \(a larger image_size, or a network for small images\)",
    ):
        find_head(model, (3, 32, 32))
    with pytest.raises(InputError, match=r"for images of 8x6: .* images of 16x12 would have 2x2"):
        find_head(Headed(*pooled(nn.Linear(8, 5)), stride=8), (3, 8, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_say_so(value: float) -> None:
    model = Plain()
    with torch.no_grad():
        model.stage2[0].weight[0, 0, 0, 0] = value
    for look in (find_head, lambda m, s: find_pre_activations(m, find_layers(m, s), s)):
        with pytest.raises(
            InputError, match=r"Plain answers values that are not finite .* its weights are not"
        ):
            look(model, SMALL)


def test_a_head_is_found_in_low_precision() -> None:
    model = Plain(classes=7)
    assert find_head(model.bfloat16(), (3, 32, 32)).shape == (7, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert find_head(model.float(), (3, 32, 32)).classifier == "fc"


# --- what the activations are given ---------------------------------------------------------------------


def pre(model: nn.Module, names: list[str] | None = None) -> list[tuple[str, str]]:
    layers = named_layers(model, names, SMALL) if names else find_layers(model, SMALL)
    return [(place.module, place.side) for place in find_pre_activations(model, layers, SMALL)]


def test_pre_activations_of_known_networks() -> None:
    blocks = range(1, 5)
    assert pre(timm.create_model("resnet18")) == [(f"layer{i}.1.act2", "input") for i in blocks]
    assert pre(torchvision_network("resnet18")) == [(f"layer{i}.1.relu", "input") for i in blocks]
    assert pre(create_model("wrn_10_1")) == [(f"group{i}", "output") for i in (1, 2, 3)]  # signed
    assert pre(Plain()) == [(f"stage{i}.2", "input") for i in (1, 2, 3)]


def test_pre_activations_of_layers_that_are_named() -> None:
    """A layer in front of an activation that works in place on its answer is its own pre-activation."""
    model = torchvision_network("resnet18")
    assert pre(model, ["layer1.1.bn2"]) == [("layer1.1.bn2", "output")]
    assert pre(model, ["layer1.1.relu"]) == [("layer1.1.relu", "input")]
    assert pre(Plain(), ["stage1.1", "stage2.2"]) == [("stage1.1", "output"), ("stage2.2", "input")]


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Hardswish, nn.PReLU])
@pytest.mark.parametrize("modules", [True, False])
def test_activations_other_than_relu(activation: type[nn.Module], modules: bool) -> None:
    """Their answers have negative values too, and are no pre-activations for that."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Block(3, 4), Block(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)).mean((2, 3))

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1)
            self.act = activation() if modules else None

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if self.act is not None:
                return self.act(x)
            if activation is nn.PReLU:
                return F.prelu(x, torch.tensor(0.2))
            return {nn.SiLU: F.silu, nn.GELU: F.gelu, nn.LeakyReLU: F.leaky_relu}.get(
                activation, F.hardswish
            )(x)

    if modules:
        assert pre(Net(), ["one", "two"]) == [("one.act", "input"), ("two.act", "input")]
    else:
        with pytest.raises(
            InputError, match=r"layer 'one' of Net answers activated values, but does not end in"
        ):
            pre(Net(), ["one", "two"])


@pytest.mark.parametrize("how", ["relu", "relu in place", "method", "clamp", "maximum"])
def test_functional_relus_are_refused(how: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(self.conv1(x))
            return {
                "relu": F.relu,
                "relu in place": F.relu_,
                "method": Tensor.relu,
                "clamp": lambda t: t.clamp(min=0),
                "maximum": lambda t: torch.maximum(t, torch.zeros(())),
            }[how](x)

    model = nn.Sequential(Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(
        InputError,
        match=r"layer '0' of Sequential answers activated values, but does not end in an activation module "
        r".*name layers that do, or whose answers come before the activation",
    ):
        pre(model)
    assert pre(model, ["0.conv2"]) == [("0.conv2", "output")]


def test_pairs_of_nearly_the_same_resolution() -> None:
    def layers(*sides: int) -> list[Layer]:
        return [Layer(f"l{side}", (4, side, side)) for side in sides]

    pairs = pair_layers(layers(15, 7, 3), layers(16, 8, 4, 2))
    assert [(ours.name, theirs.name) for ours, theirs in pairs] == [("l15", "l16"), ("l7", "l8")]
    with pytest.raises(InputError, match="no resolution in common"):
        pair_layers(layers(12, 5), layers(16, 8, 2))
