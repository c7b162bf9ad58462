"""Guess the target of a plan from the machine."""

from __future__ import annotations

from dataclasses import dataclass

from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.errors import MissingBackendError


@dataclass(frozen=True)
class GuessedTarget:
    """A target, and why it is the one for this machine."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"target: {self.name}, because {self.reason}; --target chooses another"


def guess_target() -> GuessedTarget:
    """Return a flavour of TensorRT if this machine has it and an NVIDIA GPU, otherwise ONNX Runtime."""
    try:
        device = Cuda().device_name()
    except MissingBackendError as error:
        return GuessedTarget("onnxruntime", f"this machine has no usable NVIDIA GPU ({str(error).splitlines()[0].rstrip('.')})")
    for flavour in FLAVOURS.values():
        try:
            flavour.load()
        except MissingBackendError:
            continue
        return GuessedTarget(flavour.name, f"this machine has an NVIDIA GPU ({device}) and {flavour.name} is installed")
    return GuessedTarget("onnxruntime", f"this machine has an NVIDIA GPU ({device}), but neither {' nor '.join(FLAVOURS)} is installed")
