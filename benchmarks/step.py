"""A training step and the attention loss alone: eyeline, its floor, the plain formulation, torchdistill."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.attention import attention_map
from eyeline.device import Device, resolved
from eyeline.distiller import Distiller
from eyeline.losses.attention_transfer import map_distance
from eyeline.models import create_model
from eyeline.observe import find_layers, pair_layers
from eyeline.settings import Settings
from eyeline.training.compiling import Part, compile_parts, losses_part, student_part, teacher_part
from eyeline.training.optimizer import make_optimizer
from measure import Result, Variant, interleave
from worker import Worker

METHODS = ("at", "kd", "at+kd")
PAIRS = (("wrn_40_2", "wrn_16_2"), ("wrn_16_2", "wrn_16_1"))
"""Teacher and student."""
COMPILED = {
    "": (),
    ", losses compiled": ("losses",),
    ", compiled": ("teacher", "losses", "student"),
}
"""What runs compiled, by the end of a variant's name."""
CLASSES, BETA, ALPHA, TEMPERATURE = 100, 1000.0, 0.9, 4.0
# a rate at which repeated steps on one batch of noise stay finite
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


class Setup:
    """Networks, one batch and the device; every variant trains its own copy of the student."""

    def __init__(self, teacher: str, student: str, batch: int, side: int, device: str) -> None:
        torch.manual_seed(0)
        self.settings = resolved(Settings.of(accelerator=device, learning_rate=SGD["lr"]), files=False)
        self.device = Device.of(self.settings)
        target = self.device.torch_device
        self.shape = (3, side, side)
        self._student = create_model(student, CLASSES)
        self._teacher = create_model(teacher, CLASSES).eval().requires_grad_(False)
        pairs = pair_layers(find_layers(self._student, self.shape), find_layers(self._teacher, self.shape))
        self.layers = [(ours.name, theirs.name) for ours, theirs in pairs]
        """Those whose attention is compared: of the student and of the teacher."""
        self.images = torch.randn(batch, *self.shape).to(target)
        self.labels = torch.randint(0, CLASSES, (batch,)).to(target)
        self.images_last = self.images.contiguous(memory_format=torch.channels_last)

    def networks(self, eyelines_format: bool) -> tuple[nn.Module, nn.Module]:
        """A fresh student and teacher, in eyeline's memory format or the default one."""
        pair = copy.deepcopy(self._student).train(), copy.deepcopy(self._teacher)
        if eyelines_format:
            return self.device.place(pair[0]), self.device.place(pair[1])
        return pair[0].to(self.images.device), pair[1].to(self.images.device)


def steps_a_figure(device: str) -> int:
    """How many steps a figure is the mean of: in training they follow one another, and find caches that the
    last one filled; one step on a GPU would be the wait for the host."""
    return 10 if device == "cuda" else 3


def measure_step(
    pair: tuple[str, str], batch: int, side: int, rounds: int, device: str, compiled: bool
) -> Result:
    """The training step of one pair of networks; ``compiled``: also compiled as the engine does it."""
    shape = (*pair, batch, side, device)
    ours = Worker(our_steps, *shape, compiled, keep=True, device=device, repeat=steps_a_figure(device))
    samples = interleave_steps([ours, *other_workers(*shape)], rounds)
    result = Result(f"Training step, {' -> '.join(pair)}, {side} x {side}, batch {batch}", "s", samples)
    for method in METHODS:
        for end in COMPILED:
            own = f"{method} eyeline{end}"
            floor = floor_of(end)
            result.ratio(own, f"student alone{floor}", f"teacher alone{floor}", label=f"floor{floor}")
            for other in ("plain", "torchdistill", "torchdistill*"):
                result.ratio(own, f"{method} {other}", label=other)
    result.notes = [
        f"eyeline and the floor: {precision(device)}, channels_last, freed memory kept, as its engine does",
        WHAT_COMPILED,
        *notes_on_others(device),
        "floor: student alone (cross entropy, backward, SGD) + teacher alone (forward), in the same setting",
    ]
    return result


WHAT_COMPILED = (
    "compiled: networks and losses, or the losses alone, as the engine does in a long run where it measures "
    "a gain"
)


def floor_of(end: str) -> str:
    """The end of the name of the floor in the same setting, which has none of the losses compiled alone."""
    return end if end == ", compiled" else ""


def precision(device: str) -> str:
    """eyeline's own on this device."""
    return "bf16 autocast" if Device.of(Settings.of(accelerator=device)).bf16 else "float32"


def notes_on_others(device: str) -> list[str]:
    """How the steps of :func:`other_workers` run."""
    return [
        "plain and torchdistill: float32, contiguous, each step in a process of its own that allocates as it "
        "likes",
        f"torchdistill*: the same in {precision(device)}, channels_last"
        if has_torchdistill()
        else "torchdistill is not installed (pip install --group benchmark): left out",
    ]


def our_steps(
    teacher: str, student: str, batch: int, side: int, device: str, compiled: bool
) -> dict[str, Variant]:
    """eyeline's steps; the floor is ``student alone`` + ``teacher alone``."""
    setup = Setup(teacher, student, batch, side, device)
    variants = {}
    for end, parts in COMPILED.items() if compiled else [("", ())]:
        if floor_of(end) == end:
            variants[f"student alone{end}"] = student_alone(setup, parts)
            variants[f"teacher alone{end}"] = teacher_alone(setup, parts)
        for method in METHODS:
            variants[f"{method} eyeline{end}"] = eyeline_step(setup, method, parts)
    return variants


def other_workers(teacher: str, student: str, batch: int, side: int, device: str) -> list[Worker]:
    """The same work by others: a process a step, as what ran there before would change how it allocates."""
    kinds = ("plain", "torchdistill", "torchdistill*")[: 3 if has_torchdistill() else 1]
    shape, repeat = (teacher, student, batch, side, device), steps_a_figure(device)
    return [
        Worker(_other_step, *shape, method, kind, device=device, repeat=repeat)
        for method in METHODS
        for kind in kinds
    ]


def _other_step(
    teacher: str, student: str, batch: int, side: int, device: str, method: str, kind: str
) -> dict[str, Variant]:
    setup = Setup(teacher, student, batch, side, device)
    if kind == "plain":
        return {f"{method} plain": plain_step(setup, method)}
    return {f"{method} {kind}": torchdistill_step(setup, method, eyelines_format=kind.endswith("*"))}


def interleave_steps(workers: Sequence[Worker], rounds: int) -> dict[str, list[float]]:
    """The samples of all variants of the workers, which end then."""
    variants = {name: step for worker in workers for name, step in worker.variants().items()}
    samples = interleave(variants, rounds, warmup=1)
    for worker in workers:
        worker.close()
    return samples


def student_alone(setup: Setup, compiled: Collection[str] = ()) -> Variant:
    """The floor's first part: cross entropy, backward, SGD."""
    student, _ = setup.networks(eyelines_format=True)
    optimizer = make_optimizer(setup.settings, list(student.parameters()))

    def step() -> None:
        with setup.device.autocast():
            loss = F.cross_entropy(student(setup.images_last).float(), setup.labels)
        update(optimizer, loss)

    _compile(setup, compiled, Part("student", student, lambda size: step(), steps=1, long=0.0))
    return step


def teacher_alone(setup: Setup, compiled: Collection[str] = ()) -> Variant:
    """The floor's second part."""
    _, teacher = setup.networks(eyelines_format=True)

    def ask(size: int) -> None:
        with torch.no_grad(), setup.device.autocast():
            teacher(setup.images_last[:size])

    _compile(setup, compiled, teacher_part(teacher, ask, 1))
    return lambda: ask(len(setup.images))


def eyeline_distiller(
    setup: Setup, method: str, compiled: Collection[str] = (), layers: str | Sequence[str] = "auto"
) -> tuple[Distiller, torch.optim.Optimizer]:
    """A distiller as the engine runs it, and its optimizer."""
    distiller = Distiller(*setup.networks(eyelines_format=True), method, layers, setup.shape)
    distiller.to(setup.images.device)
    optimizer = make_optimizer(setup.settings, distiller.trainable_parameters())

    def ask(size: int) -> None:
        with setup.device.autocast():
            distiller.target(setup.images_last[:size], setup.labels[:size])

    def some(size: int) -> Tensor:
        return setup.images_last[:size]

    teacher = teacher_part(distiller.teacher, ask, 1)
    learning = (part(distiller, some, setup.device.autocast, 1) for part in (losses_part, student_part))
    _compile(setup, compiled, teacher, *learning)
    return distiller, optimizer


def _compile(setup: Setup, names: Collection[str], *parts: Part) -> None:
    """As the engine's ``compile=auto`` may do in a long run."""
    asked = [part for part in parts if part.name in names]
    if asked:
        compile_parts(asked, "on", setup.images.device, [len(setup.images)])


def eyeline_step(
    setup: Setup, method: str, compiled: Collection[str] = (), layers: str | Sequence[str] = "auto"
) -> Variant:
    """The step with a live teacher."""
    distiller, optimizer = eyeline_distiller(setup, method, compiled, layers)

    def step() -> None:
        with setup.device.autocast():
            loss = distiller(setup.images_last, setup.labels).total
        update(optimizer, loss)

    return step


def plain_step(setup: Setup, method: str) -> Variant:
    """The step as the code of the 2017 papers writes it, in PyTorch's defaults."""
    student, teacher = setup.networks(eyelines_format=False)
    groups, teacher_groups = (
        _seen(network, names)
        for network, names in zip((student, teacher), zip(*setup.layers, strict=True), strict=True)
    )
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def step() -> None:
        logits = student(setup.images)
        with torch.no_grad():
            teacher_logits = teacher(setup.images)
        loss = F.cross_entropy(logits, setup.labels)
        if "kd" in method:
            divergence = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = (1 - ALPHA) * loss + ALPHA * TEMPERATURE**2 * divergence
        if "at" in method:
            loss = loss + BETA * plain_attention_loss(list(groups.values()), list(teacher_groups.values()))
        update(optimizer, loss)

    return step


def plain_attention_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Attention transfer as in the papers' code, summed over the groups."""

    def at(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    return torch.stack([(at(s) - at(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True)]).sum()


def _seen(network: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """What the layers answered last, by name."""
    seen: dict[str, Tensor] = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, arguments, output, name=name: seen.update({name: output})
        )
    return seen


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward and the optimizer's step."""
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
    ours, theirs = (
        {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": list(names)}}
        for names in zip(*setup.layers, strict=True)
    )
    terms = {**_TORCHDISTILL_TERMS, "at": _torchdistill_attention(setup.layers)}
    config = {
        "num_epochs": 1,
        "teacher": {**theirs, "requires_grad": False},
        "student": ours,
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {name: terms[name] for name in _terms(method)}},
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
}


def _torchdistill_attention(layers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    pairs = {
        ours: {"student": {"io": "output", "path": ours}, "teacher": {"io": "output", "path": theirs}}
        for ours, theirs in layers
    }
    return {
        "criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}},
        "weight": BETA,
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
