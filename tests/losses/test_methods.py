"""The methods beside attention transfer and distillation: against slow references, and what all must keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eyeline
from eyeline import functional
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.losses import LOSSES
from eyeline.losses.class_maps import binarized
from eyeline.objective.schedules import loss_rates
from oracles import methods as oracle
from tiny import SETTINGS, tiny_data

METHODS: list[Any] = [
    *(name for name in LOSSES if name != "ce"),
    {"gat": {"squared": True, "statistics": "running"}},
    {"gat": {"where": "features", "compare": "map"}},
    {"sym": {"statistics": "running", "outputs": 0.5}},
    {"grad_reg": {"squared": False}},
    {"act": {"reduction": "norm"}},
    {"cam": {"classes": 2, "min_max": True}},
    {"cam": {"classes": "label"}},
    {"cat": {"stages": True, "binarize": True}},
    {"cat": {"top": -2, "normalize": True}},
    {"aft": {"binary": "mean"}},
    "gat+kd",
    "at+sym",
    "cat+kd",
]


class Net(nn.Module):
    """Two stages that end in an activation module, average pooling, a linear classifier."""

    def __init__(self, width: int = 3, classes: int = 4, norm: bool = True, smooth: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1)
        self.stage1, self.stage2 = (
            nn.Sequential(
                nn.Conv2d(i, o, 3, stride, 1),
                nn.BatchNorm2d(o) if norm else nn.Identity(),
                nn.Softplus() if smooth else nn.ReLU(inplace=True),
            )
            for i, o, stride in ((width, width, 1), (width, 2 * width, 2))
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.conv(images))).mean((2, 3)))


def nets(seed: int = 0, teacher_width: int = 4, **options: Any) -> tuple[Net, Net]:
    torch.manual_seed(seed)
    return Net(3, **options), Net(teacher_width, **options)


def hold_statistics(net: nn.Module) -> None:
    """Let the running statistics of a network in training stay as they are."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 1, 10, 8, generator=generator, dtype=dtype), torch.arange(6) % 4


def pair(*shape: int, channels: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    other = shape if channels is None else (shape[0], channels, *shape[2:])
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, other))  # type: ignore[return-value]


def options(method: Any) -> str:
    return str(method)


# --- the functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
def test_gradient_distance(squared: bool) -> None:
    a, b = pair(3, 2, 4, 5)
    close(
        functional.gradient_distance(a, b, squared), oracle.gradient_distance(a.numpy(), b.numpy(), squared)
    )
    close(functional.gradient_distance(a, None, squared), oracle.gradient_distance(a.numpy(), None, squared))
    assert torch.autograd.gradcheck(lambda x: functional.gradient_distance(x, b, squared), a.requires_grad_())


@pytest.mark.parametrize("reduction", ["mean_square", "norm"])
def test_full_activation(reduction: Any) -> None:
    a, b = pair(3, 2, 4, 5)
    expected = oracle.full_activation(a.numpy(), b.numpy(), reduction)
    close(functional.full_activation_loss(a, b, reduction), expected)
    close(functional.full_activation_loss(7 * a, 1e-3 * b, reduction), expected)
    assert torch.autograd.gradcheck(
        lambda x: functional.full_activation_loss(x, b, reduction), a.requires_grad_()
    )


def test_hint() -> None:
    a, b = pair(2, 3, 4, 5)
    close(functional.hint_loss(a, b), float(((a - b) ** 2).mean()))
    assert torch.autograd.gradcheck(lambda x: functional.hint_loss(x, b), a.requires_grad_())


def test_class_activation_maps() -> None:
    features, _ = pair(2, 3, 4, 5)
    weight = torch.randn(6, 3, dtype=torch.float64)
    maps = functional.class_activation_maps(features, weight)
    expected = torch.from_numpy(oracle.class_activation_maps(features.numpy(), weight.numpy()))
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)
    logits = F.linear(features.mean((2, 3)), weight)
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("min_max", [False, True])
def test_class_activation_map_loss(min_max: bool) -> None:
    a, b = pair(2, 3, 4, 5)
    expected = oracle.class_activation_map_loss(a.numpy(), b.numpy(), min_max)
    close(functional.class_activation_map_loss(a, b, min_max), expected)
    assert torch.autograd.gradcheck(
        lambda x: functional.class_activation_map_loss(x, b, min_max), a.requires_grad_()
    )


@pytest.mark.parametrize("resolution", [1, 2, 4])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("binarize", [False, True])
def test_class_attention(resolution: int, normalize: bool, binarize: bool) -> None:
    a, b = pair(2, 3, 4, 8)
    # every map has positions of both kinds, so that none is empty once binary
    expected = oracle.class_attention(a.numpy(), b.numpy(), resolution, normalize, binarize)
    close(functional.class_attention_loss(a, b, resolution, normalize, binarize), expected)
    assert torch.autograd.gradcheck(
        lambda x: functional.class_attention_loss(x, b, resolution, normalize, binarize), a.requires_grad_()
    )


def test_attention_feature() -> None:
    maps, pre = pair(2, 3, 4, 5)
    block = functional.attention_feature(maps, pre)
    torch.testing.assert_close(block, (maps > 0).double() + pre.clamp(min=0), rtol=0, atol=1e-12)
    # without a learnable embedding the block is (Pre + 1) where Pre is positive
    torch.testing.assert_close(
        functional.attention_feature(pre, pre), (pre + 1) * (pre > 0), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        functional.attention_feature(maps, pre, "mean") - pre.relu(), binarized(maps), rtol=0, atol=1e-12
    )
    maps.requires_grad_()
    (gradient,) = torch.autograd.grad(functional.attention_feature(maps, pre).sum(), maps)
    sigmoid = 1 / (1 + torch.exp(-maps.detach()))
    torch.testing.assert_close(gradient, sigmoid * (1 - sigmoid), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda m: functional.attention_feature(m, pre, "soft"), maps)


def test_loss_rates() -> None:
    names = ["ce", "at", "kd"]
    for first, last in (([2.0, 0.1, 5.0], [1.0, 0.09, 4.0]), ([2.0, 0.1, 5.0], [0.01, 0.09, 4.0])):
        found = loss_rates(names, torch.tensor(first), torch.tensor(last))
        torch.testing.assert_close(found, torch.tensor(oracle.loss_rates(names, first, last)))
        assert abs(float(found.mean()) - 1) < 1e-6
        assert float(found[0]) >= 0.1 - 1e-7
    assert loss_rates(["at"], torch.zeros(1), torch.ones(1)).tolist() == [1.0]


# --- the whole objective ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "gat",
        {"gat": {"squared": True}},
        {"gat": {"statistics": "running"}},
        {"gat": {"where": "features", "compare": "map"}},
        "sym",
        {"sym": {"squared": True, "outputs": 0.5}},
        "grad_reg",
        "act",
        "hint",
        "cam",
        {"cam": {"classes": 2}},
        "cat",
        {"cat": {"stages": True}},
        {"aft": {"binary": "soft"}},
    ],
    ids=options,
)
def test_gradient_is_the_finite_difference(method: Any) -> None:
    student, teacher = nets(smooth=True)
    hold_statistics(student)
    distiller = Distiller(student.double(), teacher.double(), method, input_shape=(1, 10, 8)).double()
    images, labels = batch(torch.float64)
    total = distiller(images, labels).total
    # a stop-gradient is no derivative: of these two the parameters of the losses are left out
    parameters = list(student.parameters()) if "aft" in str(method) else distiller.trainable_parameters()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    analytic = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * step)
        values.append(float(distiller(images, labels).total))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * step)
    numeric = (values[0] - values[1]) / (2 * step)
    assert analytic == pytest.approx(numeric, rel=2e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_weight_gradient_of_gradient_attention_has_its_closed_form(squared: bool) -> None:
    # a network without hidden layers: z = W mean(x), J = W^T (softmax(z) - e_y) / positions
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    torch.manual_seed(0)
    student, teacher = Linear().double(), Linear().double()
    images = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    labels = torch.tensor([1])
    method = {"ce": {"weight": 0}, "gat": {"squared": squared}}
    terms = Distiller(student, teacher, method, input_shape=(1, 3, 3))(images, labels)
    ours = torch.autograd.grad(terms.total, student.head.weight)[0]

    def jacobian(weight: Tensor, net: Linear) -> Tensor:
        x = images.clone().requires_grad_()
        z = F.linear(net.conv(x).mean((2, 3)), weight, net.head.bias)
        return torch.autograd.grad(F.cross_entropy(z, labels), x, create_graph=True)[0]

    difference = jacobian(student.head.weight, student) - jacobian(teacher.head.weight, teacher)
    mixed = torch.autograd.functional.jacobian(lambda w: jacobian(w, student).flatten(), student.head.weight)
    expected = torch.einsum("p,pkc->kc", difference.detach().flatten(), mixed)
    if not squared:
        expected = expected / (2 * difference.detach().norm())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=options)
def test_what_every_method_keeps(method: Any) -> None:
    student, teacher = nets()
    before = copy.deepcopy(teacher.state_dict())
    distiller = Distiller(student, teacher, method, input_shape=(1, 10, 8))
    images, labels = batch()
    moved = copy.deepcopy(student)
    moved.train()(images)
    terms = distiller.train()(images, labels)
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term >= 0 for term in terms.values())
    terms.total.backward()
    for name, parameter in distiller.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # statistics move once a step, whatever passes the method makes
    for name, buffer in moved.named_buffers():
        torch.testing.assert_close(student.get_buffer(name), buffer)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())

    targets = distiller.target(images, labels)
    for target in targets.values():
        assert all(len(t) == len(images) and not t.requires_grad for t in target.values())
    hold_statistics(student)
    remembered = distiller(images, labels, targets)
    torch.testing.assert_close(dict(remembered), dict(distiller(images, labels)), rtol=1e-4, atol=1e-6)
    distiller.close()


@pytest.mark.parametrize("method", METHODS, ids=options)
def test_bfloat16(method: Any) -> None:
    student, teacher = nets()
    distiller = Distiller(student, teacher, method, input_shape=(1, 10, 8))
    images, labels = batch()
    exact = distiller(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        terms = distiller(images, labels)
    for name, term in terms.items():
        # that of mirrored images is the square of a difference that is little more than the rounding
        assert float(term) == pytest.approx(float(exact[name]), rel=0.05, abs=3e-3), name
    terms.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize("method", METHODS, ids=options)
def test_learnable_parts_move_and_stay_out_of_the_student(method: Any) -> None:
    student, teacher = nets()
    distiller = Distiller(student, teacher, method, input_shape=(1, 10, 8))
    own = {n: p.detach().clone() for n, p in distiller.objective.named_parameters()}
    trained = {id(p) for p in distiller.trainable_parameters()}
    assert all(id(p) in trained for p in distiller.objective.parameters())
    assert set(own) <= set(distiller.objective.state_dict())
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1)
    distiller(*batch()).total.backward()
    optimizer.step()
    for name, parameter in distiller.objective.named_parameters():
        assert not torch.equal(parameter, own[name]), name
    assert not any("objective" in name for name in student.state_dict())


def test_nothing_to_learn_where_the_student_is_the_teacher() -> None:
    student, _ = nets()
    images, labels = batch()
    teacher = copy.deepcopy(student)
    for method in ({"gat": {"statistics": "running"}}, "cam", "cat", "act"):
        distiller = Distiller(student, teacher, method, input_shape=(1, 10, 8))
        student.eval()
        terms = distiller(images, labels)
        assert float(next(v for k, v in terms.items() if k != "ce")) == pytest.approx(0, abs=1e-6)
        terms.total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
        distiller.close()


def test_without_a_teacher() -> None:
    student, _ = nets()
    for method in ("sym", "grad_reg", "sym+grad_reg"):
        distiller = Distiller(student, None, method)
        distiller(*batch()).total.backward()
        distiller.close()


def test_symmetry_of_a_symmetric_network_is_zero() -> None:
    student, _ = nets(norm=False)
    with torch.no_grad():
        for conv in (student.conv, student.stage1[0], student.stage2[0]):
            conv.weight.copy_((conv.weight + conv.weight.flip(3)) / 2)
    student.stage2[0].stride = (1, 1)
    images, labels = batch()
    assert float(Distiller(student, None, "sym")(images, labels)["sym"]) == pytest.approx(0, abs=1e-6)
    assert float(Distiller(nets(norm=False)[0], None, "sym")(images, labels)["sym"]) > 1e-4


def test_one_sample_depends_on_the_others_only_through_batch_statistics() -> None:
    student, teacher = nets()
    hold_statistics(student)
    images, labels = batch()
    for statistics, alone in (("running", True), ("batch", False)):
        distiller = Distiller(student.train(), teacher, {"gat": {"statistics": statistics}})
        values = [float(distiller(images[:2], labels[:2])["gat"])]
        values.append(sum(float(distiller(images[i : i + 1], labels[i : i + 1])["gat"]) for i in (0, 1)) / 2)
        assert (values[0] == pytest.approx(values[1], rel=1e-4)) == alone
        distiller.close()


def test_the_top_classes_are_exactly_as_many() -> None:
    student, teacher = nets()
    images, labels = batch()
    order = teacher.eval()(images).argsort(1)
    for top, expected in ((3, order[:, -3:]), (-2, order[:, :2])):
        distiller = Distiller(student, teacher, {"cat": {"top": top}}, input_shape=(1, 10, 8))
        classes = distiller.target(images, labels)["cat"]["classes"]
        assert torch.equal(classes.sort(1).values, expected.sort(1).values)


def test_class_maps_reach_the_classifier_and_the_features() -> None:
    for method in ("cam", "cat"):
        student, teacher = nets()
        distiller = Distiller(student, teacher, {"ce": {"weight": 0}, method: {}}, input_shape=(1, 10, 8))
        distiller(*batch()).total.backward()
        assert student.head.weight.grad is not None
        assert student.head.weight.grad.abs().sum() > 0
        assert student.stage1[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr]
        assert student.head.bias.grad is None or student.head.bias.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "name",
    [
        *("wrn_16_1", "resnet20", "vgg8_cifar", "nin_thin", "resnet18", "mobilenetv2_100"),
        *("torchvision/resnet18", "torchvision/densenet121", "efficientnet_b0"),
    ],
)
def test_the_mean_of_a_class_map_plus_the_bias_is_the_logit(name: str) -> None:
    small = name.split("_")[0] in ("wrn", "resnet20", "vgg8", "nin")
    net = eyeline.create_model(name, num_classes=5, in_chans=3).eval()
    shape = (3, 32, 32) if small else (3, 64, 96)
    observer = eyeline.Observer(net, (), shape, class_maps=True)
    with torch.no_grad():
        seen = observer(torch.randn(2, *shape))
    bias = net.get_submodule(observer.head.classifier).bias  # type: ignore[union-attr]
    torch.testing.assert_close(seen.class_maps.mean((2, 3)) + bias, seen.logits, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["torchvision/vgg11", "torchvision/squeezenet1_1", "mobilenetv3_small_050"])
@pytest.mark.whole
def test_heads_without_class_maps_are_refused(name: str) -> None:
    net = eyeline.create_model(name, num_classes=5, in_chans=3)
    with pytest.raises(InputError, match="has no class maps"):
        eyeline.Observer(net, (), (3, 64, 64), class_maps=True)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18", "resnet20", "wrn_16_1"])
def test_pre_activations_are_what_the_activation_is_given(name: str) -> None:
    net = eyeline.create_model(name, num_classes=5, in_chans=3).eval()
    shape = (3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts some at 0, and nothing would be negative
    observer = eyeline.Observer(net, "auto", shape, pre_activations=True)
    with torch.no_grad():
        seen = observer(torch.randn(2, *shape))
    for feature, pre in zip(seen.features, seen.pre_activations, strict=True):
        assert float(pre.min()) < 0
        torch.testing.assert_close(feature, pre if float(feature.min()) < 0 else pre.relu())


def test_a_pre_activation_that_cannot_be_seen_is_refused() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stage3 = _ReluInside()

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.stage3(self.stage2(self.stage1(self.conv(images)))).mean((2, 3)))

    class _ReluInside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x - 0.1)

    student, teacher = Functional(), nets()[1]
    with pytest.raises(InputError, match="name layers"):
        Distiller(student, teacher, "aft", layers=["stage3:stage2"], input_shape=(1, 10, 8))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"gat": {"where": "inputs"}}, "did you mean 'input'"),
        ({"gat": {"statistics": "runing"}}, "did you mean 'running'"),
        ({"gat": {"squared": True, "compare": "map"}}, "squared is for compare=gradient"),
        ({"gat": {"where": "features"}}, "compare=map"),
        ({"sym": {"outputs": -1}}, "at least 0"),
        ({"hint": {"layer": 9}}, "expected 0 to 1"),
        ({"cam": {"classes": 9}}, "only 4 classes"),
        ({"cam": {"classes": "some"}}, "expected all, label"),
        ({"cat": {"resolution": 0}}, "at least 1"),
        ({"cat": {"resolution": 7}}, "class maps are 5x4"),
        ({"cat": {"top": 0}}, "other than 0"),
        ({"aft": {"binary": "hard"}}, "binary"),
        ({"ce": {"schedule": "constant"}, "aft": {}}, "at least two"),
    ],
)
def test_refused(method: Any, message: str) -> None:
    student, teacher = nets()
    with pytest.raises(InputError, match=message):
        Distiller(student, teacher, method, input_shape=(1, 10, 8))


def test_labels_are_needed_to_differentiate() -> None:
    student, teacher = nets()
    with pytest.raises(InputError, match="labels"):
        Distiller(student, teacher, "gat").target(batch()[0])


# --- through the verbs --------------------------------------------------------------------------------------


def tiny_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Net(3, classes=3), Net(4, classes=3)


@pytest.mark.parametrize("method", METHODS, ids=options)
@pytest.mark.whole
def test_trains_and_resumes_exactly(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eyeline.runs.folder import RunFolder

    student, teacher = tiny_pair()
    settings = {**SETTINGS, "epochs": 2}
    whole = eyeline.distill(student, teacher, tiny_data(), str(tmp_path / "a"), method=method, **settings)
    save, saves = RunFolder.save_checkpoint, 0

    def stop_after_five(self: RunFolder, state: Any) -> None:
        nonlocal saves
        save(self, state)
        saves += 1
        if saves == 5:  # within the second epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        eyeline.distill(student, teacher, tiny_data(), str(tmp_path / "b"), method=method, **settings)
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    resumed = eyeline.distill(
        student, teacher, tiny_data(), str(tmp_path / "b"), method=method, resume=True, **settings
    )
    first, second = (run.folder / "student.safetensors" for run in (whole, resumed))
    assert first.read_bytes() == second.read_bytes()
    assert whole.result == {**resumed.result}


@pytest.mark.whole
def test_a_study_of_all_methods_with_a_memory(tmp_path: Path) -> None:
    student, teacher = tiny_pair()
    methods = {f"m{i}": method for i, method in enumerate(METHODS)}
    run = eyeline.study(
        lambda: copy.deepcopy(student),
        teacher,
        tiny_data(),
        str(tmp_path / "study"),
        methods=methods,
        seeds=1,
        **{**SETTINGS, "epochs": 1, "memory": str(tmp_path / "memory"), "memory_precision": "float32"},
    )
    assert len(run.result["methods"]) == len(METHODS) + 1


def test_values_that_are_not_finite_show_before_anything_is_made(tmp_path: Path) -> None:
    student, teacher = tiny_pair()
    with torch.no_grad():
        student.head.weight[0, 0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="not finite on images of noise"):
        eyeline.distill(student, teacher, tiny_data(), str(tmp_path / "run"), method="gat", **SETTINGS)
    assert not (tmp_path / "run").exists()


def close(found: Tensor, expected: float) -> None:
    assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-12)
