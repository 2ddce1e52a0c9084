"""Networks are seen as they are, by module path, and are not changed by being seen."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from eyeline import InputError, Observer, create_model
from eyeline.observe.observer import _Recording
from networks import Answers, OverwrittenLater, Plain

BY_HAND = ["stage1", "stage2", "stage3"]


def by_hand(net: Plain, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the stages answer, without hooks."""
    one = net.stage1(net.conv(x))
    two = net.stage2(one)
    three = net.stage3(two)
    return net.fc(three.mean((2, 3))), [one, two, three]


@pytest.fixture
def net() -> Plain:
    torch.manual_seed(0)
    return Plain().eval()


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (20, 12)], ids=str)
def test_features_are_what_the_layers_answer(net: Plain, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    logits, features = by_hand(net, x)
    observer = Observer(net)
    seen = observer(x)
    assert [layer.name for layer in observer.layers] == BY_HAND
    assert torch.equal(seen.logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(seen.features, features, strict=True))
    assert seen.features[1].shape == (2, 6, size[0] // 2, size[1] // 2)


def test_named_layers_come_in_the_order_given(net: Plain) -> None:
    x = torch.randn(1, 3, 16, 16)
    for layers in (["stage3", "stage1.0"], "stage3, stage1.0"):
        observer = Observer(net, layers)
        assert [layer.name for layer in observer.layers] == ["stage3", "stage1.0"]
        seen = observer(x).features
        assert torch.equal(seen[0], by_hand(net, x)[1][2])
        assert torch.equal(seen[1], net.stage1[0](net.conv(x)))
        observer.close()
    assert Observer(net, ())(x).features == ()


def test_leaving_a_with_takes_the_hooks_off(net: Plain) -> None:
    with Observer(net, ["stage1"]) as observer:
        assert observer(torch.randn(1, 3, 16, 16)).features[0].ndim == 4
        assert hook_count(net) == 1
    assert hook_count(net) == 0


def test_unknown_layer_names_the_nearest(net: Plain) -> None:
    # not every module that there is
    said = r"unknown layer of Plain 'stage_2'; did you mean 'stage2'\? \(stage1, stage2, stage3, \.\.\.\)"
    with pytest.raises(InputError, match=said):
        Observer(net, ["stage_2"])
    with pytest.raises(
        InputError, match=r"'fc' of Plain answers a tensor of shape \[N, 5\]; expected one tensor"
    ):
        Observer(net, ["fc"])
    with pytest.raises(InputError, match="twice"):
        Observer(net, ["stage1", "stage1"])
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match="'spare' of Plain exists but does not run"):
        Observer(net, ["spare"])
    assert hook_count(net) == 0


@pytest.mark.parametrize("how", ["relu module", "relu function", "add", "view", "dropout module"])
@pytest.mark.parametrize("training", [False, True])
def test_value_before_a_later_operation_in_place(how: str, training: bool) -> None:
    net = OverwrittenLater(how).train(training)
    x = torch.randn(2, 3, 8, 8)
    before = net.body(net.conv(x))
    assert (before < 0).any()
    seen = Observer(net, ["body"])(x)
    assert torch.equal(seen.features[0], before)
    seen.features[0].square().sum().backward()  # the gradient too is that of the value before
    assert net.conv.weight.grad is not None
    found = net.conv.weight.grad.clone()
    net.zero_grad()
    net.body(net.conv(x)).square().sum().backward()
    torch.testing.assert_close(found, net.conv.weight.grad)


def test_overwritten_where_the_probe_cannot_see_it_is_an_error() -> None:
    net = OverwrittenLater("dropout function").eval()
    observer = Observer(net, ["body"])
    observer(torch.randn(2, 3, 8, 8))
    net.train()
    with pytest.raises(InputError, match=r"'body' was overwritten in place.*inplace=False"):
        observer(torch.randn(2, 3, 8, 8))


def test_silent_when_called_by_others_and_nothing_kept_between_calls(net: Plain) -> None:
    observer = Observer(net)
    x = torch.randn(2, 3, 16, 16)
    kept = weakref.ref(observer(x).features[0])
    gc.collect()
    assert kept() is None
    net(x)
    assert observer._recording == _Recording()


def test_nothing_kept_after_an_error(net: Plain) -> None:
    observer = Observer(net)
    with pytest.raises(RuntimeError):
        observer(torch.randn(2, 1, 16, 16))
    assert observer._recording == _Recording()


def test_gradient_flows_and_no_grad_is_respected(net: Plain) -> None:
    observer = Observer(net)
    x = torch.randn(2, 3, 16, 16)
    observer(x).features[1].square().sum().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert set(found) == {n for n, _ in net.named_parameters() if n.startswith(("conv", "stage1", "stage2"))}
    net.zero_grad()
    by_hand(net, x)[1][1].square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad)
    with torch.no_grad():
        assert not observer(x).features[0].requires_grad
    with torch.inference_mode():
        assert observer(x).features[0].is_inference()


def test_observed_network_copies_saves_and_pickles(net: Plain) -> None:
    names = list(net.state_dict())
    observer = Observer(net)
    assert list(net.state_dict()) == names
    x = torch.randn(2, 3, 16, 16)
    seen = observer(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), seen.logits)
        with torch.no_grad():
            other.stage1[0].weight.zero_()
        assert torch.equal(observer(x).logits, seen.logits)  # the copy is not seen in the place of the first
        assert torch.equal(Observer(other)(x).features[2], by_hand(other, x)[1][2])
    for again in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert again.model is not net
        assert torch.equal(again(x).features[1], seen.features[1])


def test_close_takes_the_hooks_off(net: Plain) -> None:
    net.stage1.register_forward_hook(lambda *_: None)  # the user's own
    first, second = Observer(net), Observer(net, ["stage2"])
    assert hook_count(net) == 5
    first.close()
    assert hook_count(net) == 2
    assert len(second(torch.randn(1, 3, 16, 16)).features) == 1
    second.close()
    assert hook_count(net) == 1


def test_two_observers_of_one_network_do_not_disturb_each_other(net: Plain) -> None:
    x = torch.randn(2, 3, 16, 16)
    first, second = Observer(net), Observer(net, ["stage2.0"])
    assert len(first(x).features) == 3
    assert second._recording == _Recording()
    assert torch.equal(second(x).features[0], net.stage2[0](first(x).features[0]))


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        (lambda z: {"logits": z}, "dict"),
        (lambda z: (z, z), "tuple"),
        (lambda z: z[:, :, None, None], r"\[2, 5, 1, 1\]"),
    ],
    ids=["dict", "tuple", "4-D"],
)
def test_network_that_answers_no_logits(form: object, shown: str) -> None:
    observer = Observer(Answers(form), ())
    with pytest.raises(InputError, match=rf"answers {shown}; expected logits \[N, K\]"):
        observer(torch.randn(2, 3, 16, 16))


def test_layer_that_runs_twice_is_seen_the_last_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.again(self.again(self.conv(x))).mean((2, 3)))

    net, x = Twice(), torch.randn(2, 3, 8, 8)
    for layers in ("auto", ["again"]):
        observer = Observer(net, layers)
        assert [layer.name for layer in observer.layers] == ["again"]
        assert torch.equal(observer(x).features[0], net.again(net.again(net.conv(x))))


def test_layer_that_does_not_run_every_time() -> None:
    class Skips(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.fc(self.stage3(self.stage2(x if self.training else self.stage1(x))).mean((2, 3)))

    net = Skips()
    observer = Observer(net)
    net.train()
    with pytest.raises(InputError, match="'stage1' did not run in this forward pass"):
        observer(torch.randn(2, 3, 16, 16))


def test_autocast(net: Plain) -> None:
    x = torch.randn(2, 3, 16, 16)
    full = Observer(net)(x)
    with torch.autocast("cpu", torch.bfloat16):
        observer = Observer(net)  # the probe too may run under it
        seen = observer(x)
    assert seen.logits.dtype == torch.bfloat16
    for low, high in zip(seen.features, full.features, strict=True):
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), high, atol=0.1, rtol=0.1)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "backend", "compiled_first"),
    [(Plain, "eager", False), (Plain, "eager", True), (lambda: create_model("wrn_10_1"), "aot_eager", False)],
    ids=["observed first", "compiled first", "wrn"],
)
@pytest.mark.whole
def test_compiled_without_a_graph_break(
    make: Callable[[], nn.Module], backend: str, compiled_first: bool
) -> None:
    torch._dynamo.reset()
    net = make().eval()
    x = torch.randn(2, 3, 16, 24)
    plain = Observer(net)
    eager = plain(x)
    plain.close()
    if compiled_first:
        net.compile(backend=backend, fullgraph=True)
        observer = Observer(net)
    else:
        observer = Observer(net)
        net.compile(backend=backend, fullgraph=True)
    seen = observer(x)
    torch.testing.assert_close(seen.logits, eager.logits)
    for a, b in zip(seen.features, eager.features, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(net(x), eager.logits)  # called by others
    assert observer._recording == _Recording()
    seen.features[0].square().sum().backward()
    gradient = next(net.parameters()).grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("how", ["relu module", "dropout module"])
def test_compiled_value_before_a_later_operation_in_place(how: str) -> None:
    torch._dynamo.reset()
    net = OverwrittenLater(how)
    x = torch.randn(2, 3, 8, 8)
    before = net.body(net.conv(x))
    observer = Observer(net, ["body"])
    net.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(observer(x).features[0], before)


@pytest.mark.unchecked
def test_the_probe_of_a_compiled_network_is_not_compiled() -> None:
    torch._dynamo.reset()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    net = Plain().eval()
    net.compile(backend=backend, fullgraph=True)
    observer = Observer(net, input_shape=(3, 16, 16))
    assert not graphs
    with torch.no_grad():
        x = torch.randn(1, 3, 16, 16)  # as the probe, of a teacher
        assert torch.equal(observer(x).features[2], by_hand(net, x)[1][2])
    assert len(graphs) == 1


def test_compiled_and_called_before_it_is_observed() -> None:
    torch._dynamo.reset()
    net = Plain().eval()
    net.compile(backend="eager")
    x = torch.randn(2, 3, 16, 16)
    net(x)
    with pytest.raises(InputError, match="compiled model must be observed before its first call"):
        Observer(net)(x)


def test_train_mode_moves_statistics_once_per_call(net: Plain) -> None:
    net.train()
    other = copy.deepcopy(net)
    x = torch.randn(4, 3, 16, 16)
    observer = Observer(net)
    torch.manual_seed(1)
    observer(x)
    torch.manual_seed(1)
    other(x)
    for (name, ours), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_timm_names_agree_with_timm_features() -> None:
    model = timm.create_model("resnet18", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    features = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    features.load_state_dict(model.state_dict(), strict=False)
    seen = Observer(model, input_shape=(3, 64, 64))(x).features
    for a, b in zip(seen, features(x), strict=True):
        torch.testing.assert_close(a, b)


# --- class maps -----------------------------------------------------------------------------------------


def bias_of(model: nn.Module, observer: Observer) -> Tensor | float:
    assert observer.head is not None
    bias = model.get_submodule(observer.head.classifier).bias
    return 0.0 if bias is None else bias  # type: ignore[return-value]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "wrn_10_1",
            "resnet18",
            "resnet50",
            "densenet121",
            "regnety_002",
            "efficientnet_b0",
            "mobilenetv2_050",
        ),
        *("resnetv2_50", "dla34"),
        *(
            "torchvision/resnet18",
            "torchvision/mobilenet_v2",
            "torchvision/googlenet",
            "torchvision/densenet121",
        ),
        *("torchvision/shufflenet_v2_x0_5", "torchvision/efficientnet_b0"),
    ],
)
def test_the_mean_of_a_class_map_and_the_bias_is_the_logit(name: str) -> None:
    library, _, rest = name.rpartition("/")
    torch.manual_seed(0)
    if library:
        options = {"init_weights": False, "aux_logits": False} if rest == "googlenet" else {}
        model = torchvision.models.get_model(rest, weights=None, num_classes=3, **options)
    else:
        model = create_model(rest, num_classes=3)
    size = 32 if rest == "wrn_10_1" else 64
    observer = Observer(model, (), (3, size, size), class_maps=True)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)  # biases too, that were 0
    x = torch.randn(3, 3, size, size)
    for shape in (x, torch.nn.functional.pad(x, (0, 32))):
        for training in (False, True):
            model.train(training)
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            for module in model.modules():  # timm's dropout by function
                if isinstance(getattr(module, "drop_rate", None), float):
                    module.drop_rate = 0.0
            with torch.no_grad():
                seen = observer(shape)
            assert seen.class_maps is not None
            assert seen.class_maps.shape[:2] == (3, 3)
            assert seen.class_maps[0, 0].numel() > 1
            found = seen.class_maps.mean((2, 3)) + bias_of(model, observer)
            scale = float(seen.logits.abs().max())
            torch.testing.assert_close(found, seen.logits, rtol=1e-4, atol=1e-5 * scale)


def test_class_maps_by_hand(net: Plain) -> None:
    x = torch.randn(2, 3, 16, 24)
    expected = torch.einsum("kc,nchw->nkhw", net.fc.weight, by_hand(net, x)[1][2])
    found = Observer(net, (), class_maps=True)(x).class_maps
    torch.testing.assert_close(found, expected)
    assert Observer(net)(x).class_maps is None


@pytest.mark.parametrize("training", [False, True])
def test_class_maps_where_relus_work_in_place_or_are_functions(training: bool) -> None:
    """Plain's last ReLU works in place on the batch norm's answer; wrn's is a function, also in place."""
    torch.manual_seed(0)
    for model, size in ((Plain(dropout=0.0), 16), (create_model("wrn_10_1"), 32)):
        model.train(training)
        observer = Observer(model, input_shape=(3, size, size), class_maps=True)
        seen = observer(torch.randn(4, 3, size, size))
        assert seen.class_maps is not None
        torch.testing.assert_close(
            seen.class_maps.mean((2, 3)) + bias_of(model, observer), seen.logits, rtol=1e-4, atol=1e-5
        )
        gradients = torch.autograd.grad(
            seen.class_maps.square().sum(), list(model.parameters()), allow_unused=True
        )
        through = torch.autograd.grad(
            (model(torch.ones(4, 3, size, size)) ** 2).sum(), list(model.parameters()), allow_unused=True
        )
        reached = [g is not None for g in gradients]
        assert reached == [*[g is not None for g in through][:-1], False]  # all but the classifier's bias
        observer.close()


# --- pre-activations ------------------------------------------------------------------------------------


def block_by_hand(block: nn.Module, x: Tensor) -> Tensor:
    """The residual sum of a torchvision basic block."""
    out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))  # type: ignore[operator]
    return out + (x if block.downsample is None else block.downsample(x))  # type: ignore[operator]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_pre_activations_of_a_resnet_are_the_residual_sums(library: str, training: bool) -> None:
    """torchvision's block calls its one ReLU twice, and both work in place."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    if library == "timm":
        weights = model.state_dict()
        model = timm.create_model("resnet18", num_classes=3)
        model.load_state_dict(weights)
    model.train(training)
    observer = Observer(model, input_shape=(3, 64, 64), pre_activations=True)
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict(model.state_dict())
    plain.train(training)
    x = torch.randn(3, 3, 64, 64)
    seen = observer(x)
    y = plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))
    for i, stage in enumerate((plain.layer1, plain.layer2, plain.layer3, plain.layer4)):
        for block in stage:
            before = block_by_hand(block, y)
            y = torch.relu(before)
        assert (before < 0).any()
        assert torch.equal(seen.pre_activations[i], before)
        assert torch.equal(seen.features[i], y)


def test_pre_activations_of_plain_stages_and_of_signed_features(net: Plain) -> None:
    x = torch.randn(2, 3, 16, 24)
    y = net.conv(x)
    seen = Observer(net, pre_activations=True)(x)
    for stage, found in zip((net.stage1, net.stage2, net.stage3), seen.pre_activations, strict=True):
        before = stage[1](stage[0](y))
        assert torch.equal(found, before)
        y = before.relu()
    wide = create_model("wrn_10_1").eval()
    seen = Observer(wide, pre_activations=True)(torch.randn(2, 3, 32, 32))
    for feature, found in zip(seen.features, seen.pre_activations, strict=True):
        assert torch.equal(feature, found)
        assert (found < 0).any()
    assert Observer(wide)(torch.randn(2, 3, 32, 32)).pre_activations == ()


def test_pre_activations_of_smooth_activations() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.SiLU(inplace=True), nn.Conv2d(4, 6, 3, 2, 1), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    x = torch.randn(2, 3, 16, 16)
    seen = Observer(net, ["1", "3"], pre_activations=True)(x)
    one = net[0](x)
    assert torch.equal(seen.pre_activations[0], one)
    assert torch.equal(seen.pre_activations[1], net[2](nn.functional.silu(one)))
    assert torch.equal(seen.features[1], nn.functional.gelu(net[2](nn.functional.silu(one))))


@pytest.mark.unchecked
def test_everything_at_once_compiled_copied_and_closed(net: Plain) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 3, 16, 16)
    hooks = lambda model: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # noqa: E731
    observer = Observer(net, pre_activations=True, class_maps=True)
    eager = observer(x)
    other = copy.deepcopy(observer)
    with torch.no_grad():
        net.fc.weight.zero_()
    assert torch.equal(other(x).class_maps, eager.class_maps)  # type: ignore[arg-type]
    assert not observer(x).class_maps.any()  # type: ignore[union-attr]
    other.model.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    compiled = other(x)
    for name in ("features", "pre_activations"):
        for a, b in zip(getattr(compiled, name), getattr(eager, name), strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(compiled.class_maps, eager.class_maps)
    assert hooks(net) > 0
    observer.close()
    assert hooks(net) == 0
