"""Which layers of a network to observe, and which layer of the teacher goes with which of the student."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eyeline.errors import InputError, unknown
from eyeline.randomness import draws_apart

PROBE_SIZES = (224, 32, 64, 28, 96, 299)


@dataclass(frozen=True)
class Layer:
    """A module of a network, with the shape it answers for one image of the probed size."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W)."""
    overwritten: bool = False
    """A later module works in place on this layer's output."""

    @property
    def resolution(self) -> tuple[int, int]:
        return self.shape[1:]


@dataclass(frozen=True)
class Place:
    """Where a tensor can be seen: what a module answers, or what it is given."""

    module: str
    side: Literal["input", "output"]
    overwritten: bool = False
    """A later operation works in place on the tensor."""
    relu: bool = False
    """The tensor that is meant is the ReLU of what is seen, by a function that cannot be hooked."""


def find_layers(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
    """Find the last layer of every spatial resolution, stem and 1x1 outputs excluded, from input to output.

    timm's ``feature_info`` names the candidates where the model has it; otherwise they are all modules but
    the inner ones of a block that itself answers another resolution, and layer norms (over the channels, they
    leave a flat attention map). Their shapes come from one probe on a blank image, which changes neither
    weights, statistics, modes nor the random state.

    The stem is the resolution reached after a single convolution, a module called ``stem``, or in timm's list
    a bare activation in front of the stages.

    Raises:
        InputError: no layer answers a 4-D tensor of more than one position.
    """
    calls = _probe(model, input_shape)
    listed = _timm_layers(model)
    spatial = [c for c in calls if c.shape is not None and c.shape[1] * c.shape[2] > 1 and c.convolutions > 1]
    if listed:
        spatial = [c for c in spatial if c.name in listed]
    else:
        blocks = {c.name: c for c in calls if type(c.module) is not nn.Sequential}
        spatial = [
            c
            for c in spatial
            if not isinstance(c.module, nn.LayerNorm) and not _inside_another_resolution(c, blocks)
        ]
    spatial = [c for c in spatial if c.name.partition(".")[0] != "stem"] or spatial
    in_front = _channels_in_front(model, spatial)
    spatial = [c for c in spatial if in_front.get(c.name, True)]
    last = {c.shape[1:]: c for c in spatial if c.shape}
    found = sorted(last.values(), key=lambda c: c.order)
    if not found:
        raise InputError(
            f"no layer of {type(model).__name__} answers a feature map [N, C, H, W] larger than 1x1; "
            "attention maps need a convolutional network (or name the layers yourself)"
        )
    return tuple(c.layer() for c in found)


def named_layers(
    model: nn.Module, names: Sequence[str], input_shape: tuple[int, int, int] | None = None
) -> tuple[Layer, ...]:
    """Check layers named by their module paths.

    Raises:
        InputError: a layer does not exist, does not run, does not answer a 4-D tensor, or has its channels
            behind the positions.
    """
    if not names:
        return ()
    existing = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in existing:
            try:
                found = [layer.name for layer in find_layers(model, input_shape)]
            except InputError:
                found = None
            raise unknown(f"layer of {type(model).__name__}", name, existing, listed=found)
    if len(set(names)) < len(names):
        raise InputError(f"layers {list(names)} name one layer twice")
    calls = {c.name: c for c in _probe(model, input_shape)}
    for name in names:
        if name not in calls:
            raise InputError(
                f"layer {name!r} of {type(model).__name__} exists but does not run in the forward pass"
            )
        if calls[name].shape is None:
            raise InputError(
                f"layer {name!r} of {type(model).__name__} answers {calls[name].shown}; "
                "expected one tensor [N, C, H, W]"
            )
    in_front = _channels_in_front(model, [calls[name] for name in names])
    for name in names:
        if not in_front.get(name, True):
            raise InputError(
                f"layer {name!r} of {type(model).__name__} answers {calls[name].shown}, with the channels "
                "behind the positions as in [N, H, W, C]; expected [N, C, H, W]"
                + _nearest(model, calls, name)
            )
    return tuple(calls[name].layer() for name in names)


def _nearest(model: nn.Module, calls: Mapping[str, _Call], name: str) -> str:
    """The hint at what answers ``[N, C, H, W]``: a block around the named layer, or what runs next to it."""
    maps = [c for c in calls.values() if c.name and c.shape and c.shape[1] * c.shape[2] > 1]
    in_front = _channels_in_front(model, maps)
    near = min(
        (c for c in maps if in_front.get(c.name)),
        key=lambda c: (not name.startswith(f"{c.name}."), abs(c.order - calls[name].order)),
        default=None,
    )
    return f"; the nearest layer of that kind is {near.name!r}" if near else "; the network has no such layer"


def _channels_in_front(model: nn.Module, calls: Sequence[_Call]) -> dict[str, bool]:
    """Whether the calls' answers ``[N, a, b, c]`` are ``[N, C, H, W]``, by name, of those that can be told.

    Told by number: an image of another size has another H and W, and the same C. Where this does not tell, as
    in a network that takes one size only: what changes with the upper or the lower half of an image shows
    along b, not along a, and what changes with the left or the right half along c, not along b.
    """
    if not calls:
        return {}
    image = calls[0].image
    resized: dict[str, tuple[int, int, int] | None] = {}
    for height, width in ((image[1] // 2, image[2] // 2), (2 * image[1], 2 * image[2])):
        with suppress(Exception):  # a network may refuse a shape in any way
            resized = {c.name: c.shape for c in _run_probe(model, (image[0], height, width))}
            image = image[0], height, width
            break
    told: dict[str, bool] = {}
    for call in calls:
        shape, other = call.shape, resized.get(call.name)
        if shape and other:
            a, b, c = (one != another for one, another in zip(shape, other, strict=True))
            if b and c and not a:
                told[call.name] = True
            elif not c and (a or shape[:2] == (1, 1) != shape[1:]):
                told[call.name] = False
    untold = {c.name for c in calls} - set(told)
    if untold:
        with suppress(Exception):
            for call in _run_probe(model, image, noise=True, halves=True):
                if call.name in untold and call.seen is not None and len(call.seen) == 8:
                    rows, columns = _shown_by_halves(call.seen)
                    if min(rows, columns) > 0.5 or max(rows, columns) < -0.5:
                        told[call.name] = rows > 0
    return told


def _shown_by_halves(answers: Tensor) -> tuple[float, float]:
    """How much more top and bottom show along b than along a, and left and right along c than along b.

    In [-1, 1], of the answers ``[8, a, b, c]`` to the probe by halves.
    """
    one, other, top, left = answers.float().unflatten(0, (4, 2))

    def apart(mixed: Tensor, axis: int) -> float:
        """How far the changes by the two halves lie apart along an axis, in [0, 1]."""
        rest = [i for i in range(4) if i != axis]
        by_halves = [(mixed - whole).abs().sum(rest) for whole in (one, other)]
        return float(torch.sub(*(change / change.sum() for change in by_halves)).abs().sum() / 2)

    return apart(top, 2) - apart(top, 1), apart(left, 3) - apart(left, 2)


def pair_layers(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Pair the layers of two networks that have the same resolution for the same image.

    Networks with no resolution in common are paired in order if they have equally many layers, else by the
    nearest resolution, at most a quarter off on each axis.

    Raises:
        InputError: no pair can be made.
    """
    by_resolution = {layer.resolution: layer for layer in teacher}
    pairs = [
        (layer, by_resolution[layer.resolution]) for layer in student if layer.resolution in by_resolution
    ]
    if not pairs and len(student) == len(teacher):
        pairs = list(zip(student, teacher, strict=True))
    if not pairs:
        for layer in student:
            nearest = min(teacher, key=functools.partial(_apart, layer))
            if _apart(layer, nearest) <= math.log(1.25):
                pairs.append((layer, nearest))
    if not pairs:

        def shown(layers: Sequence[Layer]) -> str:
            return ", ".join(f"{layer.name} {layer.shape[1]}x{layer.shape[2]}" for layer in layers)

        raise InputError(
            f"no resolution in common: student has {shown(student)}; teacher has {shown(teacher)}; "
            "name the pairs, as in layers=['student_layer:teacher_layer']"
        )
    return pairs


def _apart(one: Layer, other: Layer) -> float:
    """How far two resolutions are apart: the larger logarithm of their ratios on the two axes."""
    return max(abs(math.log(a / b)) for a, b in zip(one.shape[1:], other.shape[1:], strict=True))


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Hardswish),
)


def find_pre_activations(
    model: nn.Module, layers: Sequence[Layer], input_shape: tuple[int, int, int] | None = None
) -> tuple[Place, ...]:
    """Find what each layer's activation function is given: the feature before its ReLU.

    Where a block ends in an activation module that is what this module is given, after the residual sum.
    A layer that answers signed values (a pre-activation network, or a layer that ends in batch norm) is its
    own pre-activation.

    Raises:
        InputError: a layer answers activated values, and no module answers them that is an activation.
    """
    calls = {c.name: c for c in _probe(model, input_shape, noise=True)}
    places = []
    for layer in layers:
        call = calls[layer.name]
        # not one behind the layer that works in place on its answer
        ends = [
            c
            for c in calls.values()
            if isinstance(c.module, ACTIVATIONS) and c.output is call.output and c.order <= call.order
        ]
        if ends:
            places.append(Place(ends[0].name, "input", ends[0].given_overwritten))
        elif call.least < 0 and not call.activated:
            places.append(Place(layer.name, "output", layer.overwritten))
        else:
            raise InputError(
                f"layer {layer.name!r} of {type(model).__name__} answers activated values, but does not end "
                "in an activation module (torch.nn.ReLU and the like) whose input could be observed; name "
                "layers that do, or whose answers come before the activation, as in layers=['layer1.1.bn2']"
            )
    return tuple(places)


@dataclass(frozen=True)
class Head:
    """A linear classifier on globally average-pooled features: logits = mean over H, W of (W A) + b."""

    classifier: str
    """The module with the weight ``[K, C]`` or ``[K, C, 1, 1]``."""
    features: Place
    """Where ``A`` ``[N, C, H, W]`` is seen."""
    shape: tuple[int, int, int]
    """(K, H, W) of the class maps, for an image of the probed size."""


def find_head(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> Head:
    """Find the classifier and the features it averages, by their values on an image of noise.

    The classifier is a linear layer whose answer is the logits, or a 1x1 convolution whose average is; the
    features are those whose average over H and W the linear layer is given. Both are checked by number, so
    the mean of a class map plus the bias is the logit for every head that is found.

    Raises:
        InputError: there is no such head: more than one linear layer, a norm or an activation behind the
            pooling, another pooling, or features of one position.
    """
    calls = _probe(model, input_shape, noise=True)
    head = _head(calls)
    if head is not None:
        return head
    channels, height, width = next(c for c in calls if c.name == "").image
    for factor in (2, 4, 8):  # features of one position are more in a larger image
        try:
            larger = _head(_run_probe(model, (channels, factor * height, factor * width), noise=True))
        except Exception:  # a network may refuse a shape in any way
            continue
        if larger is not None:
            raise InputError(
                f"{type(model).__name__} has no class maps for images of {height}x{width}: its last features "
                f"have one position; images of {factor * height}x{factor * width} would have "
                f"{larger.shape[1]}x{larger.shape[2]} (a larger image_size, or a network for small images)"
            )
    raise InputError(
        f"{type(model).__name__} has no class maps: they need one linear classifier (or 1x1 convolution) on "
        "features that are averaged over more than one position, with nothing between but dropout, so that "
        "mean(class map) + bias = logit"
    )


def _head(calls: Sequence[_Call]) -> Head | None:
    logits = next(c for c in calls if c.name == "").output
    if not (isinstance(logits, Tensor) and logits.ndim == 2):
        return None
    for call in reversed(calls):
        if not (_is_linear(call.module) and isinstance(call.seen, Tensor) and call.given is not None):
            continue
        if call.seen.ndim == 4 and call.seen[0, 0].numel() > 1:
            if _same(call.seen.mean((2, 3)), logits):
                place = Place(call.name, "input", call.given_overwritten)
                return Head(call.name, place, (logits.shape[1], call.seen.shape[2], call.seen.shape[3]))
        elif _same(call.seen.flatten(1), logits):
            averaged = _averaged(calls, call.given.flatten(1))
            if averaged is not None:
                place, size = averaged
                return Head(call.name, place, (logits.shape[1], *size))
    return None


def _averaged(calls: Sequence[_Call], pooled: Tensor) -> tuple[Place, tuple[int, int]] | None:
    """Where the features are seen whose average is ``pooled`` ``[N, C]``, and their height and width."""
    norms = (c.seen for c in calls if isinstance(c.module, nn.modules.batchnorm._NormBase))
    if any(isinstance(norm, Tensor) and _same(norm.flatten(1), pooled) for norm in norms):
        return None  # batch norm behind the pooling: it changes nothing only until it is trained
    for relu in (False, True):
        for call in reversed(calls):
            for side, tensor in (("output", call.seen), ("input", call.given)):
                if not (isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor[0, 0].numel() > 1):
                    continue
                if _same((tensor.relu() if relu else tensor).mean((2, 3)), pooled):
                    changed = call.overwritten if side == "output" else call.given_overwritten
                    place = Place(call.name, side, changed, relu)  # type: ignore[arg-type]
                    return place, (tensor.shape[2], tensor.shape[3])
    return None


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, or a convolution that is one at every position."""
    if isinstance(module, nn.Conv2d):
        return (module.kernel_size, module.stride, module.padding, module.groups) == (
            (1, 1),
            (1, 1),
            (0, 0),
            1,
        )
    return isinstance(module, nn.Linear)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether both are equal but for rounding, whatever their size."""
    if a.shape != b.shape:
        return False
    tolerance = max(1e-3, *(8 * torch.finfo(t.dtype).eps for t in (a, b)))
    return torch.allclose(a.float(), b.float(), rtol=tolerance, atol=0.1 * tolerance * float(b.abs().max()))


def named_pairs(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``["a:b", "c"]`` into the student's names ``[a, c]`` and the teacher's ``[b, c]``."""
    student, teacher = [], []
    for entry in layers:
        left, _, right = entry.partition(":")
        student.append(left.strip())
        teacher.append((right or left).strip())
    return student, teacher


@dataclass
class _Call:
    """One module's answer in the probe."""

    name: str
    module: nn.Module
    order: int
    output: Any
    version: int
    convolutions: int
    image: tuple[int, int, int]
    """(C, H, W) of the image that was shown."""
    overwritten: bool = False
    activated: bool = False
    """The output is that of an activation, a module's or a function's."""
    given: Tensor | None = None
    """With noise: a copy of the first argument."""
    argument: Tensor | None = None
    argument_version: int = 0
    given_overwritten: bool = False
    seen: Tensor | None = None
    """With noise: a copy of the output, as it was before any later operation in place."""

    @property
    def least(self) -> float:
        assert self.seen is not None
        return float(self.seen.min())

    @property
    def shape(self) -> tuple[int, int, int] | None:
        if isinstance(self.output, Tensor) and self.output.ndim == 4 and len(self.output) == 1:
            return self.output.shape[1], self.output.shape[2], self.output.shape[3]
        return None

    @property
    def shown(self) -> str:
        if isinstance(self.output, Tensor):
            images = ["N" if n == 1 else f"{n} N" for n in self.output.shape[:1]]
            return f"a tensor of shape {[*images, *self.output.shape[1:]]}".replace("'", "")
        return f"a {type(self.output).__name__}"

    def layer(self) -> Layer:
        assert self.shape is not None
        return Layer(self.name, self.shape, self.overwritten)


def _inside_another_resolution(call: _Call, blocks: Mapping[str, _Call]) -> bool:
    """Whether the call belongs to a block (no plain sequence) that answers another resolution."""
    assert call.shape is not None
    parts = call.name.split(".")
    around = (blocks.get(".".join(parts[:i])) for i in range(1, len(parts)))
    return any(b is not None and b.shape is not None and b.shape[1:] != call.shape[1:] for b in around)


def input_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """The image shapes (C, H, W) a model is likely to take, the likeliest first."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    sizes = dict.fromkeys([*_configured_sizes(model), *((s, s) for s in PROBE_SIZES)])
    channels = dict.fromkeys((first.in_channels, 3) if first else (3,))
    return [(c, height, width) for height, width in sizes for c in channels]


def _configured_sizes(model: nn.Module) -> list[tuple[int, int]]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    return [(size[1], size[2])] if size else []


def shared_input_shape(student: nn.Module, teacher: nn.Module) -> tuple[int, int, int] | None:
    """An image shape (C, H, W) that both networks take, so that their resolutions can be compared.

    None if there is none among the likely ones.
    """
    shapes = [input_shapes(student), input_shapes(teacher)]
    configured = [
        given[0] for model, given in zip((student, teacher), shapes, strict=True) if _configured_sizes(model)
    ]
    for shape in dict.fromkeys([*configured, *shapes[0], *shapes[1]]):
        try:
            _run_probe(student, shape)
            _run_probe(teacher, shape)
        except Exception:  # a network may refuse a shape in any way
            continue
        return shape
    return None


def probe_output(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> tuple[int, ...]:
    """Shape of the model's output for one blank image, without the batch dimension."""
    output = next(c for c in _probe(model, input_shape) if c.name == "").output
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


def _probe(model: nn.Module, input_shape: tuple[int, int, int] | None, noise: bool = False) -> list[_Call]:
    """Run the model once on a blank image; every module's last answer, in the order in which they ended.

    ``noise``: on an image of noise, keeping what every module is given and answers.
    """
    failure: Exception | None = None
    shapes = [input_shape] if input_shape else input_shapes(model)
    for shape in shapes:
        try:
            calls = _run_probe(model, shape, noise)
        except (
            Exception
        ) as error:  # a network may refuse a shape in any way; the likeliest shape's reason is told
            failure = failure or error
            continue
        answer = calls[-1].output
        if noise and isinstance(answer, Tensor) and not bool(torch.isfinite(answer).all()):
            raise InputError(
                f"{type(model).__name__} answers values that are not finite for an image of noise: "
                "its weights are not finite, or too large"
            )
        return calls
    tried = ", ".join("x".join(map(str, shape)) for shape in shapes[:4]) + (
        ", ..." if len(shapes) > 4 else ""
    )
    raise InputError(
        f"{type(model).__name__} does not run on a blank image of shape {tried} ({str(failure)[:200]}); "
        "give input_shape=(C, H, W) of your images"
    ) from failure


def _run_probe(
    model: nn.Module, shape: tuple[int, int, int], noise: bool = False, halves: bool = False
) -> list[_Call]:
    """``halves``: on two images, two others, and the two with the upper, then the left halves of those."""
    calls: dict[str, _Call] = {}
    watch = _FunctionWatch()
    overwritten_in_training: set[int] = set()

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            version = output._version if isinstance(output, Tensor) else 0
            calls.pop(name, None)  # a module used twice counts where it runs last
            call = calls[name] = _Call(name, module, len(calls), output, version, watch.convolutions, shape)
            if noise:
                call.activated = any(t is output and v == version for t, v in watch.activated)
                call.argument, call.argument_version, call.given = given.get(name, (None, 0, None))
                call.seen = output.clone() if isinstance(output, Tensor) else None
            if (
                isinstance(module, nn.modules.dropout._DropoutNd)
                and module.inplace
                and isinstance(output, Tensor)
            ):
                overwritten_in_training.add(output.untyped_storage().data_ptr())

        return record

    given: dict[str, tuple[Tensor, int, Tensor]] = {}

    def keep_given(name: str, module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            given[name] = args[0], args[0]._version, args[0].clone()

    with _undisturbed(model), watch:
        handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
        if noise:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(functools.partial(keep_given, name)))
        try:
            reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
            images = torch.zeros(8 if halves else 1, *shape, device=reference.device, dtype=reference.dtype)
            if noise:
                images.normal_(generator=torch.Generator(images.device).manual_seed(0))
            if halves:
                one, other, top, left = images.unflatten(0, (4, 2))
                top[:], left[:] = one, one
                top[:, :, : shape[1] // 2] = other[:, :, : shape[1] // 2]
                left[..., : shape[2] // 2] = other[..., : shape[2] // 2]
            model(images)
        finally:
            for handle in handles:
                handle.remove()

    def overwritten(tensor: Tensor | None, version: int) -> bool:
        return tensor is not None and (
            tensor._version != version or tensor.untyped_storage().data_ptr() in overwritten_in_training
        )

    for order, call in enumerate(calls.values()):
        call.order = order
        call.overwritten = isinstance(call.output, Tensor) and overwritten(call.output, call.version)
        call.given_overwritten = overwritten(call.argument, call.argument_version)
    return list(calls.values())


class _FunctionWatch(TorchFunctionMode):
    """Counts convolutions and keeps what activations answer, whether a module or a function computes them."""

    CONVOLUTIONS = frozenset({torch.conv2d, torch.conv_transpose2d})
    ACTIVATIONS = frozenset(
        {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish"}
        | {"softplus", "hardswish", "hardtanh", "clamp"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.activated: list[tuple[Tensor, int]] = []
        """Each with its version."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += func in self.CONVOLUTIONS
        answer = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").rstrip("_") in self.ACTIVATIONS and isinstance(answer, Tensor):
            self.activated.append((answer, answer._version))
        return answer


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it had, whatever its parent's."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compilation, and everything as it was afterwards."""
    # buffers a model might move, or replace, even in evaluation mode
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {t.device for t in [*model.parameters(), *(b for _, _, b, _ in buffers)]}
    try:
        with (
            evaluation_mode(model),
            draws_apart(*devices),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, kept in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)


def _timm_layers(model: nn.Module) -> dict[str, int | None]:
    """Names in timm's feature_info, without a stem that is a bare activation in front of the stages, and the
    number of channels it tells."""
    info = getattr(model, "feature_info", None)
    if info is None:
        return {}
    entries = info.info if hasattr(info, "info") else info
    modules = dict(model.named_modules())
    channels = {
        e["module"]: e.get("num_chs") for e in entries if isinstance(e, dict) and e.get("module") in modules
    }
    names = list(channels)
    stages = [name for name in names if next(modules[name].children(), None) is not None]
    if stages and names[0] not in stages:
        del channels[names[0]]
    return channels
