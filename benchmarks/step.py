"""A training step and the attention loss alone: eyeline, its floor, the plain formulation, torchdistill."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.attention import attention_map
from eyeline.distiller import Distiller
from eyeline.engine.compiling import compile_networks
from eyeline.engine.trainer import Device, make_optimizer
from eyeline.losses.attention_transfer import map_distance
from eyeline.models.wrn import WideResNet
from eyeline.settings import Settings
from measure import Result, Variant, interleave
from worker import Worker

METHODS = ("at", "kd", "at+kd")
PAIRS = (((40, 2), (16, 2)), ((16, 2), (16, 1)))
"""(depth, width) of teacher and student."""
CLASSES, BETA, ALPHA, TEMPERATURE = 100, 1000.0, 0.9, 4.0
GROUPS = ("group1", "group2", "group3")
# a rate at which repeated steps on one batch of noise stay finite
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


class Setup:
    """Networks, one batch and the device; every variant trains its own copy of the student."""

    def __init__(
        self, teacher: tuple[int, int], student: tuple[int, int], batch: int, side: int, device: str
    ) -> None:
        torch.manual_seed(0)
        self.settings = Settings.of(accelerator=device, learning_rate=SGD["lr"])
        self.device = Device.of(self.settings)
        target = self.device.torch_device
        self._student = WideResNet(*student, num_classes=CLASSES)
        self._teacher = WideResNet(*teacher, num_classes=CLASSES).eval().requires_grad_(False)
        self.images = torch.randn(batch, 3, side, side).to(target)
        self.labels = torch.randint(0, CLASSES, (batch,)).to(target)
        self.images_last = self.images.contiguous(memory_format=torch.channels_last)

    def networks(self, eyelines_format: bool) -> tuple[nn.Module, nn.Module]:
        """A fresh student and teacher, in eyeline's memory format or the default one."""
        pair = copy.deepcopy(self._student).train(), copy.deepcopy(self._teacher)
        if eyelines_format:
            return self.device.place(pair[0]), self.device.place(pair[1])
        return pair[0].to(self.images.device), pair[1].to(self.images.device)


def measure_step(
    pair: tuple[Any, Any], batch: int, side: int, rounds: int, device: str, compiled: bool
) -> Result:
    """The training step of one pair of networks; ``compiled``: also with a compiled teacher."""
    shape = (*pair, batch, side, device)
    ours = Worker(our_steps, *shape, compiled, keep=True, device=device)
    others = Worker(other_steps, *shape, device=device)
    samples = interleave({**ours.variants(), **others.variants()}, rounds, warmup=2)
    ours.close()
    others.close()
    names = [f"WRN-{depth}-{width}" for depth, width in pair]
    result = Result(f"Training step, {' -> '.join(names)}, batch {batch}", "s", samples)
    for method in METHODS:
        for own in (f"{method} eyeline", f"{method} compiled"):
            result.ratio(own, "student alone", "teacher alone", label="floor")
            for other in ("plain", "torchdistill", "torchdistill*"):
                result.ratio(own, f"{method} {other}", label=other)
    precision = "bf16 autocast" if Device.of(Settings.of(accelerator=device)).bf16 else "float32"
    result.notes = [
        f"eyeline and the floor: {precision}, channels_last, freed memory kept, as its engine does; "
        "compiled: the teacher alone, as compile=auto does in a long run",
        "plain and torchdistill: float32, contiguous, in a process that allocates as it likes",
        "floor: student alone (cross entropy, backward, SGD) + teacher alone (forward), eager",
        f"torchdistill*: the same in {precision}, channels_last"
        if has_torchdistill()
        else "torchdistill is not installed (pip install --group benchmark): left out",
    ]
    return result


def our_steps(
    teacher: tuple[int, int], student: tuple[int, int], batch: int, side: int, device: str, compiled: bool
) -> dict[str, Variant]:
    """eyeline's steps; the floor is ``student alone`` + ``teacher alone``."""
    setup = Setup(teacher, student, batch, side, device)
    variants = {"student alone": student_alone(setup), "teacher alone": teacher_alone(setup)}
    for method in METHODS:
        variants[f"{method} eyeline"] = eyeline_step(setup, method)
        if compiled:
            variants[f"{method} compiled"] = eyeline_step(setup, method, compiled=True)
    return variants


def other_steps(
    teacher: tuple[int, int], student: tuple[int, int], batch: int, side: int, device: str
) -> dict[str, Variant]:
    """The same work by others."""
    setup = Setup(teacher, student, batch, side, device)
    variants = {}
    for method in METHODS:
        variants[f"{method} plain"] = plain_step(setup, method)
        if has_torchdistill():
            variants[f"{method} torchdistill"] = torchdistill_step(setup, method, eyelines_format=False)
            variants[f"{method} torchdistill*"] = torchdistill_step(setup, method, eyelines_format=True)
    return variants


def student_alone(setup: Setup) -> Variant:
    """The floor's first part: cross entropy, backward, SGD."""
    student, _ = setup.networks(eyelines_format=True)
    optimizer = make_optimizer(setup.settings, list(student.parameters()))

    def step() -> None:
        with setup.device.autocast():
            loss = F.cross_entropy(student(setup.images_last).float(), setup.labels)
        _update(optimizer, loss)

    return step


def teacher_alone(setup: Setup) -> Variant:
    """The floor's second part."""
    _, teacher = setup.networks(eyelines_format=True)

    def step() -> None:
        with torch.no_grad(), setup.device.autocast():
            teacher(setup.images_last)

    return step


def eyeline_step(setup: Setup, method: str, compiled: bool = False) -> Variant:
    """The step of :class:`eyeline.Distiller` as the engine runs it; ``compiled``: the teacher is."""
    distiller = Distiller(*setup.networks(eyelines_format=True), method=method).to(setup.images.device)
    optimizer = make_optimizer(setup.settings, distiller.trainable_parameters())

    def ask(size: int) -> None:
        with setup.device.autocast():
            distiller.target(setup.images_last[:size])

    if compiled:
        compile_networks(
            None, distiller.teacher, "on", setup.images.device, ask, [len(setup.images)], steps=1
        )

    def step() -> None:
        with setup.device.autocast():
            loss = distiller(setup.images_last, setup.labels).total
        _update(optimizer, loss)

    return step


def plain_step(setup: Setup, method: str) -> Variant:
    """The step as the code of the 2017 papers writes it, in PyTorch's defaults."""
    student, teacher = setup.networks(eyelines_format=False)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def step() -> None:
        logits, groups = _forward_with_groups(student, setup.images)
        with torch.no_grad():
            teacher_logits, teacher_groups = _forward_with_groups(teacher, setup.images)
        loss = F.cross_entropy(logits, setup.labels)
        if "kd" in method:
            divergence = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = (1 - ALPHA) * loss + ALPHA * TEMPERATURE**2 * divergence
        if "at" in method:
            loss = loss + BETA * plain_attention_loss(groups, teacher_groups)
        _update(optimizer, loss)

    return step


def plain_attention_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Attention transfer as in the papers' code, summed over the groups."""

    def at(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    return torch.stack([(at(s) - at(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True)]).sum()


def _forward_with_groups(network: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    group1 = network.group1(network.stem(images))
    group2 = network.group2(group1)
    group3 = network.group3(group2)
    pooled = F.adaptive_avg_pool2d(F.relu(network.norm(group3)), 1).flatten(1)
    return network.head(pooled), [group1, group2, group3]


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def has_torchdistill() -> bool:
    try:
        import torchdistill  # noqa: F401
    except ImportError:
        return False
    return True


def torchdistill_step(setup: Setup, method: str, eyelines_format: bool) -> Variant:
    """The step of torchdistill's DistillationBox, from a configuration as in its examples."""
    from torchdistill.core.distillation import DistillationBox

    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    student, teacher = setup.networks(eyelines_format)
    images = setup.images_last if eyelines_format else setup.images
    observed = {
        "forward_proc": "forward_batch_only",
        "forward_hook": {"input": [], "output": list(GROUPS)},
    }
    config = {
        "num_epochs": 1,
        "teacher": {**observed, "requires_grad": False},
        "student": dict(observed),
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {name: _TORCHDISTILL_TERMS[name] for name in _terms(method)}},
        },
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
    }
    box = DistillationBox(teacher, student, {}, config, images.device, None, False, 1.0)
    box.pre_epoch_process(epoch=0)

    def step() -> None:
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=eyelines_format and setup.device.bf16
        ):
            loss = box.forward_process(images, setup.labels, None)
        box.post_forward_process(loss)

    return step


def _terms(method: str) -> list[str]:
    # torchdistill's KDLoss holds the cross entropy
    return method.split("+") if "kd" in method else ["ce", "at"]


_OUTPUT = {"is_from_teacher": False, "module_path": ".", "io": "output"}
_TORCHDISTILL_TERMS: dict[str, dict[str, Any]] = {
    "ce": {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {"input": _OUTPUT, "target": {"uses_label": True}},
        },
        "weight": 1.0,
    },
    "kd": {
        "criterion": {
            "key": "KDLoss",
            "kwargs": {
                "student_module_path": ".",
                "student_module_io": "output",
                "teacher_module_path": ".",
                "teacher_module_io": "output",
                "temperature": TEMPERATURE,
                "alpha": 1 - ALPHA,
            },
        },
        "weight": 1.0,
    },
    "at": {
        "criterion": {
            "key": "ATLoss",
            "kwargs": {
                "at_pairs": {
                    group: {network: {"io": "output", "path": group} for network in ("teacher", "student")}
                    for group in GROUPS
                },
                "mode": "code",
            },
        },
        "weight": BETA,
    },
}


def measure_attention(batch: int, side: int, rounds: int, device: str) -> Result:
    """The attention loss alone, forward and backward, on the groups' shapes of WRN-40-2 -> WRN-16-2."""
    shapes = [(batch, 32 << i, side >> i, side >> i) for i in range(3)]
    torch.manual_seed(0)
    plain = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(2)]
    bf16 = Device.of(Settings.of(accelerator=device)).bf16
    dtype = torch.bfloat16 if bf16 else torch.float32
    ours = [[x.to(dtype, memory_format=torch.channels_last) for x in side_] for side_ in plain]
    samples = interleave(
        {
            "eyeline": _attention(_eyeline_attention_loss, *ours),
            "plain": _attention(plain_attention_loss, *plain),
            "eyeline, plain's format": _attention(_eyeline_attention_loss, *plain),
            "plain, eyeline's format": _attention(plain_attention_loss, *ours),
        },
        rounds,
        warmup=3,
        device=device,
    )
    result = Result(f"Attention loss alone, forward and backward, three pairs, batch {batch}", "s", samples)
    result.ratio("eyeline", "plain")
    result.ratio("eyeline, plain's format", "plain")
    result.ratio("eyeline", "plain, eyeline's format")
    result.notes = [
        f"eyeline's format: {str(dtype).removeprefix('torch.')}, channels_last, maps in float32; "
        "plain's: float32, contiguous"
    ]
    return result


def _eyeline_attention_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    with torch.no_grad():
        targets = [attention_map(x) for x in teacher]
    distances = [
        map_distance(attention_map(x), q, "mean_square") for x, q in zip(student, targets, strict=True)
    ]
    return torch.stack(distances).sum()


def _attention(loss: Callable[[list[Tensor], list[Tensor]], Tensor], *pair: list[Tensor]) -> Variant:
    student = [x.clone().requires_grad_() for x in pair[0]]
    teacher = pair[1]

    def run() -> None:
        torch.autograd.grad(BETA * loss(student, teacher), student)

    return run
