"""One teacher that several distillers ask."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from eyeline.distiller import Distiller, ask_teacher
from eyeline.errors import InputError
from eyeline.losses import Loss, Target
from eyeline.memory.encoding import encode
from eyeline.memory.names import target_names
from eyeline.observe import Observer, Part


class SharedTeacher:
    """The teacher of several distillers, and all that can be remembered of it: ``losses`` by target name.

    Leaving a ``with`` takes off the hooks that are not those of a distiller.
    """

    network: nn.Module
    losses: dict[str, Loss]
    parts: dict[str, Part | None]
    """What each sees of the layers."""

    def __init__(self, distillers: Sequence[Distiller]) -> None:
        asking = [distiller for distiller in distillers if distiller.observe_teacher is not None]
        observers = [d.observe_teacher for d in asking if d.observe_teacher is not None]
        self.network = observers[0].model
        layers = list(dict.fromkeys(layer.name for observer in observers for layer in observer.layers))
        activated = {name for observer in observers for name in observer.activated}
        class_maps = any(observer.head for observer in observers)
        enough = [
            observer
            for observer in observers
            if len(observer.layers) == len(layers)
            and activated <= {*observer.activated}
            and (observer.head or not class_maps)
        ]
        self._own = None
        if not enough:
            self._own = Observer(
                self.network,
                layers,
                asking[0].input_shape,
                pre_activations=activated,
                class_maps=class_maps,
            )
        self.observe = self._own or enough[0]
        self.losses, self.parts = {}, {}
        for distiller in distillers:
            for term, name in target_names(distiller).items():
                loss = self.losses[name] = distiller.objective.targeted[term]
                if term in distiller.layers:
                    theirs = [right for _, right in distiller.layers[term]]
                    self.parts[name] = self.observe.part(theirs, "pre_activations" in loss.needs)

    def __enter__(self) -> SharedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.close()

    def targets(self, images: Tensor, labels: Tensor, names: Collection[str]) -> dict[str, Target]:
        """Of one forward pass on ``images`` ``[N, C, H, W]`` of ``labels`` ``[N]``: those that are named."""
        return ask_teacher(self.observe, images, labels, self.losses, self.parts, names)

    def bytes_per_image(self, images: Tensor, precision: str) -> dict[str, int]:
        """What each target of one view of one image takes, from a few images of any content.

        Raises:
            InputError: a target has not one row an image.
        """
        sizes = {}
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for name, target in self.targets(images, labels, self.losses).items():
            for part, tensor in target.items():
                if tensor.ndim == 0 or len(tensor) != len(images):
                    raise InputError(
                        f"the target {part!r} of {name.rpartition('-')[0]!r} is {list(tensor.shape)} for "
                        f"{len(images)} images; expected a row an image, or a loss with remembers = False"
                    )
            whole = sum(part.nbytes for part in encode(target, precision).parts.values())
            sizes[name] = whole // len(images)
        return sizes
