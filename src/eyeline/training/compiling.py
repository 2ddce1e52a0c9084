"""Which networks run compiled: as the settings say, or where it was measured to pay for a run so long."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from eyeline.console import console
from eyeline.data.batches import TrainingStream
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.hashing import weights_hash
from eyeline.losses import Target
from eyeline.observe import Observation, evaluation_mode
from eyeline.settings import Settings

_FEW_STEPS = 200  # in which to measure would cost more than it could tell

_MEASURED = 1.0  # seconds, or three times


@dataclass(frozen=True)
class Part:
    """What may run compiled."""

    name: str
    module: nn.Module
    ask: Callable[[int], object]
    """Does with it what a step does, for a number of images."""
    steps: int
    """How often that will be."""
    long: float
    """Seconds of it in all from which compiling is tried on a CPU."""
    constant: bool = False
    """Weights and batch norm never change, and may be folded into the code."""


def teacher_part(teacher: nn.Module, ask: Callable[[int], object], steps: int) -> Part:
    """Compiling takes half a minute at first, and saves about a tenth."""
    return Part("teacher", teacher, ask, steps, long=600.0, constant=True)


def student_part(distiller: Distiller, images: Callable[[int], Tensor], autocast: Any, steps: int) -> Part:
    """The student's forward and backward pass; compiling takes half a minute, and saves a few percent.

    ``images``: so many of them, as the student is given them; ``autocast``: the context that it runs in. What
    the passes do to running statistics is for the caller to undo.
    """

    def ask(size: int) -> None:
        batch = images(size)
        labels = torch.zeros(size, dtype=torch.int64, device=batch.device)
        with autocast():
            seen = distiller.observe_student(batch, labels)
        parameters = [p for p in distiller.student.parameters() if p.requires_grad]
        torch.autograd.grad(seen.logits.float().logsumexp(1).sum(), parameters, allow_unused=True)

    return Part("student", distiller.student, ask, steps, long=3600.0)


def losses_part(distiller: Distiller, images: Callable[[int], Tensor], autocast: Any, steps: int) -> Part:
    """The losses with their gradients; compiling takes some ten seconds at first, and saves about a half.

    ``images``: so many of them, as the student is given them; ``autocast``: the context that it runs in.
    """
    seen: dict[int, tuple[Observation, Mapping[str, Target], Tensor]] = {}

    def observe(size: int) -> tuple[Observation, Mapping[str, Target], Tensor]:
        batch = images(size)
        labels = torch.zeros(size, dtype=torch.int64, device=batch.device)
        with torch.no_grad(), evaluation_mode(distiller.student):
            shown = distiller.observe_student(batch, labels)
        shown = dataclasses.replace(
            shown,
            logits=_leaf(shown.logits),
            features=tuple(map(_leaf, shown.features)),
            pre_activations=tuple(map(_leaf, shown.pre_activations)),
            class_maps=None if shown.class_maps is None else _leaf(shown.class_maps),
        )
        return shown, distiller.target(batch, labels), labels

    def ask(size: int) -> None:
        with autocast():
            if size not in seen:
                seen[size] = observe(size)
            shown, targets, labels = seen[size]
            total = distiller.objective(shown, targets, labels).total
        leaves = [shown.logits, *shown.features, *shown.pre_activations]
        leaves += [] if shown.class_maps is None else [shown.class_maps]
        torch.autograd.grad(total, leaves, allow_unused=True)

    return Part("losses", distiller.objective, ask, steps, long=60.0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def compile_parts(
    parts: Sequence[Part],
    mode: str | Collection[str],
    device: torch.device,
    sizes: Sequence[int],
) -> tuple[list[str], list[str]]:
    """Compile networks and losses, or leave them as they are.

    On a GPU all run compiled. On a CPU, with ``auto``, each is compiled for a long run, timed against itself,
    and stays compiled if that is faster.

    Args:
        mode: ``on``, ``off``, ``auto``, or the names of the parts that are compiled.
        sizes: the batches' numbers of images, the usual one first.

    Returns:
        The names of what runs compiled, and lines that say why.
    """
    if mode == "off" or (mode == "auto" and device.type not in ("cpu", "cuda")):
        return [], []
    _keep_compiled_code()
    named = None if isinstance(mode, str) else mode
    choosing = mode == "auto" and device.type == "cpu"
    compiled, said = [], []
    for part in parts:
        before = None
        if named is not None and (part.name not in named or not part.steps):
            continue
        if choosing:
            if part.module._compiled_call_impl is not None:  # by its owner
                continue
            if part.steps < _FEW_STEPS or (before := _seconds(part.ask, sizes[0])) * part.steps < part.long:
                continue
        began = time.perf_counter()
        try:
            _compile(part, sizes, fold=part.constant and device.type == "cpu")
        except Exception as error:  # a compiler may fail in many ways; the run does not need it
            part.module._compiled_call_impl = None
            why = f"cannot be compiled ({type(error).__name__}) and runs without"
            said.append(f"compile={'on' if named else mode}: {part.name} {why}")
            continue
        if before is not None:
            took = time.perf_counter() - began
            now = _seconds(part.ask, sizes[0])
            share = f"{now / before:.2f} of the time"
            if now >= before:
                part.module._compiled_call_impl = None
                said.append(f"compile=auto: {part.name} takes {share} when compiled, and runs without")
                continue
            saved = (before - now) * part.steps
            shown = f"{saved / 60:.0f} minutes" if saved >= 120 else f"{saved:.0f} s"
            said.append(
                f"compile=auto: {part.name} compiled in {took:.0f} s, {share}: saves {shown} of this run"
            )
        compiled.append(part.name)
    return compiled, said


@contextmanager
def restored(*modules: nn.Module | None) -> Iterator[None]:
    """Afterwards networks and losses run as they did before, compiled by their owner or not."""
    name = "_compiled_call_impl"  # torch has no public way back
    before = [(vars(module), vars(module).get(name)) for module in modules if module is not None]
    try:
        yield
    finally:
        for module, call in before:
            module.pop(name, None)
            if call is not None:
                module[name] = call


def recompiling() -> AbstractContextManager[None]:
    """Where compiled code may be compiled again, as the losses are where a term begins or ends to count."""
    from torch._dynamo import config as dynamo

    # the methods of a study are one function, compiled for each; code without the hooks of an observer must
    # not serve a network with them
    return dynamo.patch(recompile_limit=256, skip_nnmodule_hook_guards=False)


def _compile(part: Part, sizes: Sequence[int], *, fold: bool) -> None:
    from torch._inductor import config as inductor

    part.module.compile(dynamic=False, **({"backend": _folding_backend(part.module)} if fold else {}))
    # only a teacher may become constants
    with recompiling(), inductor.patch(freezing=fold):
        for size in sizes:
            part.ask(size)


def _folding_backend(network: nn.Module) -> Callable[..., Any]:
    """Inductor, as an object of its own for these weights: torch looks compiled code up by its backend, and
    would serve a network the constants of weights that it had before; what else changed it sees by itself."""
    weights = weights_hash(network)
    known = _folded.get(network)
    if known is None or known[0] != weights:

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            return torch._dynamo.lookup_backend("inductor")(graph, inputs)

        _folded[network] = known = (weights, backend)
    return known[1]


_folded: WeakKeyDictionary[nn.Module, tuple[str, Callable[..., Any]]] = WeakKeyDictionary()


def _seconds(ask: Callable[[int], object], size: int) -> float:
    ask(size)
    times: list[float] = []
    while len(times) < 3 or sum(times) < _MEASURED:
        began = time.perf_counter()
        ask(size)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _keep_compiled_code() -> None:
    """In the user's cache instead of the temporary folder, so that the next run starts at once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eyeline" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))


def compile_for(
    distillers: Sequence[Distiller],
    ask: Callable[[Tensor], object],
    settings: Settings,
    device: Device,
    stream: TrainingStream,
    steps: int,
    *,
    trained: int = 0,
) -> list[str]:
    """Compile what pays where the teacher will be asked ``steps`` times, and the only distiller's student
    trained in ``trained`` steps; say so in a line each."""
    if any(distiller.objective.needs("input_gradient") for distiller in distillers):
        if settings.compile not in ("auto", "off", ()):  # torch.compile has no second derivative
            console.print("a method that differentiates gradients cannot be compiled: it runs as it is")
        return []
    sizes = dict.fromkeys(len(stream.indices(step)[1]) for step in (0, stream.steps_per_epoch - 1))
    shape = distillers[0].input_shape

    @functools.cache
    def some(size: int) -> Tensor:
        # in dtype and strides as batches are, or the code would be compiled once more for them
        assert shape is not None
        channels, *side = shape
        images = torch.randn(size, *side, channels, generator=torch.Generator().manual_seed(0))
        return device.images(images.to(device.torch_device).permute(0, 3, 1, 2))

    def ask_for(size: int) -> None:
        with device.autocast():
            ask(some(size))

    teachers = [distiller.teacher for distiller in distillers if distiller.teacher is not None]
    parts = [teacher_part(teachers[0], ask_for, steps)] if teachers else []
    learning: list[nn.Module] = []
    if trained and shape is not None:
        learning = [distillers[0].student.train(), distillers[0].objective]
        # the losses first, which the student is evaluated for as it is
        parts += [losses_part(distillers[0], some, device.autocast, trained)] if teachers else []
        parts.append(student_part(distillers[0], some, device.autocast, trained))
    kept = [copy.deepcopy(module.state_dict()) for module in learning]
    compiled, said = compile_parts(parts, settings.compile, device.torch_device, list(sizes))
    for module, state in zip(learning, kept, strict=True):
        module.load_state_dict(state)  # running statistics have seen the images of the trial
    if device.fabric.is_global_zero:
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return compiled
