"""Where a network sees each class: class-activation-map transfer and class attention transfer (CAT-KD).

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016 (arXiv 1512.04150);
Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023 (arXiv 2304.12777).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.attention import resized
from eyeline.errors import InputError
from eyeline.losses._common import unit, wide
from eyeline.losses.base import Loss, Target, check_labels, register
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Classes = int | Literal["all", "label"]


def class_activation_maps(
    features: Float[Tensor, "n c h w"], weight: Float[Tensor, "k c"]
) -> Float[Tensor, "n k h w"]:
    """``CAM_k = Σ_c W[k, c] A_c``: the last features seen through the classifier, without its bias.

    The mean of a map over its positions, plus the bias, is the class's logit.

    Args:
        features: ``A`` ``[N, C, H, W]``.
        weight: ``W`` ``[K, C]``.

    Returns:
        ``[N, K, H, W]``.
    """
    return F.conv2d(features, weight[:, :, None, None])


def class_activation_map_loss(
    student: Float[Tensor, "n k h w"], teacher: Float[Tensor, "n k h_t w_t"], min_max: bool = False
) -> Float[Tensor, ""]:
    """``mean over batch, classes and positions of (n(CAM_s) - n(CAM_t))²``, unweighted.

    ``n`` divides each class map by its Euclidean norm; with ``min_max`` each is first stretched to [0, 1].
    Where the resolutions differ the teacher's maps are resized to the student's before that.

    Args:
        student, teacher: class maps ``[N, K, H, W]``; no gradient reaches the teacher.
        min_max: ``(m - min m) / (max m - min m)`` for each map before the norm.

    Returns:
        A scalar >= 0; float64 for float64 maps, float32 otherwise.

    Raises:
        InputError: the images or classes differ.
    """
    _check_classes(student, teacher)
    target = resized(wide(teacher.detach()), (student.shape[2], student.shape[3]))
    return (_normalized(wide(student), min_max) - _normalized(target, min_max)).square().mean()


def class_attention_loss(
    student: Float[Tensor, "n k h w"],
    teacher: Float[Tensor, "n k h_t w_t"],
    resolution: int = 2,
    normalize: bool = False,
    binarize: bool = False,
) -> Float[Tensor, ""]:
    """Mean squared difference of average-pooled class maps, unweighted.

    ``MSE(pool(CAM_s), pool(CAM_t))`` with ``pool`` the adaptive average pooling to ``resolution²``.

    Args:
        student, teacher: class maps ``[N, K, H, W]``; no gradient reaches the teacher.
        resolution: side of the pooled maps.
        normalize: divide each pooled map by its Euclidean norm.
        binarize: replace the teacher's maps by ``1[x > mean over H, W of |x|]`` before they are pooled.

    Returns:
        A scalar >= 0; float64 for float64 maps, float32 otherwise.

    Raises:
        InputError: the images or classes differ, or the resolution is below 1.
    """
    _check_resolution(resolution)
    _check_classes(student, teacher)
    return F.mse_loss(
        pooled_class_maps(student, resolution, normalize),
        pooled_class_maps(
            binarized(teacher.detach()) if binarize else teacher.detach(), resolution, normalize
        ),
    )


def binarized(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h w"]:
    """``1[x > mean over H, W of |x|]`` for each sample and class: ``[N, K, H, W]`` of 0 and 1."""
    maps = wide(maps)
    return (maps > maps.abs().mean((2, 3), keepdim=True)).to(maps.dtype)


def pooled_class_maps(
    maps: Float[Tensor, "n k h w"], resolution: int, normalize: bool
) -> Float[Tensor, "n k {resolution} {resolution}"]:
    """Class maps ``[N, K, H, W]`` -> ``[N, K, resolution, resolution]``, each of unit norm if asked."""
    maps = F.adaptive_avg_pool2d(wide(maps), resolution)
    return _normalized(maps, min_max=False) if normalize else maps


def _normalized(maps: Tensor, min_max: bool) -> Tensor:
    if min_max:
        least = maps.amin((2, 3), keepdim=True)
        span = maps.amax((2, 3), keepdim=True) - least
        maps = (maps - least) / torch.where(span > 0, span, 1)
    return unit(maps, (2, 3))


def _check_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:2] != teacher.shape[:2]:
        raise InputError(
            f"class maps of shape {list(student.shape)} and {list(teacher.shape)}; "
            "expected the same images and classes"
        )


def _check_resolution(resolution: int) -> None:
    if not (isinstance(resolution, int) and resolution >= 1):
        raise InputError(f"resolution is {resolution!r}; expected a whole number of at least 1")


def _chosen(maps: Float[Tensor, "n k h w"], classes: Int[Tensor, "n m"] | None) -> Float[Tensor, "n _ h w"]:
    """The maps ``[N, n, H, W]`` of each sample's ``classes`` ``[N, n]``."""
    if classes is None:
        return maps
    return maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


@register
class ClassActivationMapTransfer(Loss):
    """:func:`class_activation_map_loss` of the networks' class maps. Reaches the student's classifier too.

    Args:
        classes: ``"all"``, ``"label"``, or a number: that many classes of the teacher's highest logits.
        min_max: stretch each map to [0, 1] first.
    """

    name = "cam"
    not_in_target = frozenset({"min_max"})
    needs = frozenset({"logits", "class_maps"})

    def __init__(self, classes: Classes = "all", min_max: bool = False) -> None:
        super().__init__()
        if classes not in ("all", "label") and not (isinstance(classes, int) and classes >= 1):
            raise InputError(f"classes is {classes!r}; expected all, label, or a whole number of at least 1")
        self.classes, self.min_max = classes, min_max

    @property
    def default_weight(self) -> float:
        return 1000.0

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        assert student.head is not None
        if isinstance(self.classes, int) and self.classes > student.head.shape[0]:
            raise InputError(
                f"classes of loss 'cam' is {self.classes}; there are only {student.head.shape[0]} classes"
            )

    def target(self, teacher: Observation) -> Target:
        assert teacher.class_maps is not None
        maps = teacher.class_maps.detach()
        if not isinstance(self.classes, int):
            return {"maps": maps}
        classes = _ranked(teacher.logits, self.classes)
        return {"maps": _chosen(maps, classes), "classes": classes}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        assert student.class_maps is not None
        ours, theirs = student.class_maps, target["maps"]
        if self.classes == "label":
            check_labels(labels, *ours.shape[:2])
            ours, theirs = _chosen(ours, labels[:, None]), _chosen(theirs, labels[:, None])
        elif "classes" in target:
            ours = _chosen(ours, target["classes"])
        return class_activation_map_loss(ours, theirs, self.min_max)


def _ranked(logits: Float[Tensor, "n k"], number: int) -> Int[Tensor, "n {abs(number)}"]:
    """The classes ``[N, n]`` of the n highest logits; of the lowest, if the number is negative."""
    return logits.detach().topk(abs(number), dim=1, largest=number > 0).indices


@register
class ClassAttentionTransfer(Loss):
    """:func:`class_attention_loss` of the networks' class maps (CAT-KD); last layer only.

    With the weight of ``ce`` set to 0 it trains on the class maps alone.

    Args:
        resolution: side of the pooled maps.
        normalize: divide each pooled map by its norm.
        binarize: the teacher's maps to 0 and 1, before the pooling.
        top: compare the teacher's ``top`` classes of highest logit only; negative: of lowest.
        stages: compare maps at every paired layer as well (see below).

    ``stages``: each paired layer gets a learnable 1x1 convolution to K class maps on either side, trained by
    the cross entropy of its average; the teacher's maps are set to ``1[sigmoid(m) > 0.5]``. Our reading of
    notes that define no more; the teacher's features stay as they are, and the live teacher is needed.
    """

    name = "cat"

    def __init__(
        self,
        resolution: int = 2,
        normalize: bool = False,
        binarize: bool = False,
        top: int | None = None,
        stages: bool = False,
    ) -> None:
        super().__init__()
        _check_resolution(resolution)
        if top is not None and (not isinstance(top, int) or top == 0):
            raise InputError(f"top is {top!r}; expected a whole number other than 0 (negative: the lowest)")
        self.resolution, self.normalize, self.binarize = resolution, normalize, binarize
        self.top, self.stages = top, stages
        self.needs = frozenset({"logits", "class_maps"} | ({"features"} if stages else set()))
        self.remembers = not stages

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        assert student.head is not None
        assert teacher is not None
        assert teacher.head is not None
        for who, (classes, height, width) in (
            ("student", student.head.shape),
            ("teacher", teacher.head.shape),
        ):
            if min(height, width) < self.resolution:
                raise InputError(
                    f"resolution of loss 'cat' is {self.resolution}; the {who}'s class maps are "
                    f"{height}x{width}; expected at most {min(height, width)}"
                )
            if self.top is not None and abs(self.top) > classes:
                raise InputError(f"top of loss 'cat' is {self.top}; there are only {classes} classes")
        if self.stages:
            convolutions = [
                nn.ModuleList(nn.Conv2d(layer.shape[0], student.head.shape[0], 1) for layer in side.layers)
                for side in (student, teacher)
            ]
            self.student_maps, self.teacher_maps = convolutions

    def target(self, teacher: Observation) -> Target:
        assert teacher.class_maps is not None
        target = {}
        maps = teacher.class_maps.detach()
        if self.top is not None:
            target["classes"] = _ranked(teacher.logits, self.top)
            maps = _chosen(maps, target["classes"])
        maps = binarized(maps) if self.binarize else maps
        target["maps"] = pooled_class_maps(maps, self.resolution, self.normalize)
        if self.stages:
            target |= {f"feature{i}": feature.detach() for i, feature in enumerate(teacher.features)}
        return target

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        assert student.class_maps is not None
        maps = _chosen(student.class_maps, target.get("classes"))
        loss = F.mse_loss(pooled_class_maps(maps, self.resolution, self.normalize), target["maps"])
        if self.stages:
            check_labels(labels, *student.logits.shape)
            for i, feature in enumerate(student.features):
                ours = wide(self.student_maps[i](feature))
                theirs = wide(self.teacher_maps[i](target[f"feature{i}"]))
                seen = (theirs.detach().sigmoid() > 0.5).to(ours.dtype)
                loss = loss + F.mse_loss(
                    pooled_class_maps(ours, self.resolution, self.normalize),
                    pooled_class_maps(seen, self.resolution, self.normalize),
                )
                loss = loss + F.cross_entropy(ours.mean((2, 3)), labels)
                loss = loss + F.cross_entropy(theirs.mean((2, 3)), labels)
        return loss
