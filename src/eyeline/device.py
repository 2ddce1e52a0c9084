"""Where and in which precision networks run: Lightning Fabric's devices."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from eyeline.errors import InputError
from eyeline.ranks import started
from eyeline.settings import Settings


@contextmanager
def fabric_is_silent() -> Iterator[None]:
    """It announces its precision and its processes at every start; the run folder records them."""
    logger = logging.getLogger("lightning_fabric")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class Device:
    """Where and in which precision networks run."""

    fabric: Fabric
    bf16: bool

    @classmethod
    @fabric_is_silent()
    def of(cls, settings: Settings, loggers: Any = (), *, idle: bool = False) -> Device:
        """Choose the hardware that the settings ask for; ``idle``: some parameters may get no gradient."""
        accelerator, devices = settings.accelerator, settings.devices
        if devices == "auto" and not torch.cuda.is_available():
            devices = 1
        try:
            kind = Fabric(accelerator=accelerator, devices=devices).device.type
            bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_native_bf16(kind))
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                precision="bf16-mixed" if bf16 else "32-true",
                loggers=loggers,
                strategy="ddp_find_unused_parameters_true" if idle else "auto",
            )
            # what starts the processes, if there are several
            launcher: Any = getattr(fabric.strategy, "cluster_environment", None)
            if launcher is not None and launcher.creates_processes_externally:
                launcher.validate_settings(len(getattr(fabric.strategy, "parallel_devices", ())), 1)
        except Exception as error:  # Lightning raises its own kinds for hardware that is not there
            raise InputError(
                f"cannot use accelerator={accelerator!r}, devices={devices!r}: {error}"
            ) from error
        if (together := started()) is not None:
            count = f"{together.by} started {together.processes} processes"
            if fabric.world_size != together.processes:
                raise InputError(
                    f"{count}, and this run is for {fabric.world_size}; give --devices {together.processes}, "
                    "or start one process"
                )
            if not launcher.creates_processes_externally:
                raise InputError(
                    f"{count}, which Lightning Fabric does not see without mpi4py; install that, or start "
                    "them with torchrun"
                )
        return cls(fabric, bf16)

    @property
    def words(self) -> dict[str, Any]:
        """What the settings call it."""
        precision = "bf16" if self.bf16 else "float32"
        return {
            "accelerator": self.torch_device.type,
            "devices": self.fabric.world_size,
            "precision": precision,
        }

    @property
    def torch_device(self) -> torch.device:
        return self.fabric.device

    def autocast(self) -> Any:
        """The context that networks run in."""
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.bf16)

    def images(self, batch: Tensor) -> Tensor:
        """As Fabric hands them to a module that trains; code compiled for others would not serve there."""
        return batch.to(torch.bfloat16) if self.bf16 else batch

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network here, in the memory format that convolutions are fastest in."""
        return model.to(self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def resolved(settings: Settings, *, files: bool) -> Settings:
    """What the settings mean on this hardware; ``files``: whether the data are images in files."""
    return settings.resolve(files=files, **Device.of(settings).words)


def has_native_bf16(device: str) -> bool:
    """Whether the hardware computes in bfloat16 by itself, where emulation would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
