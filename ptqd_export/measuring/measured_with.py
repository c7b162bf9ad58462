"""Decides what runs the networks while statistics are measured: the target's own engines, PyTorch, or ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import FLAVOURS, FlavourName
from engines.errors import MissingBackendError, UsageError

Measure: TypeAlias = Literal["engines", "torch", "cpu"]
RuntimeName: TypeAlias = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-exact", "tensorrt", "tensorrt-rtx", "torch"]
"""What ran the networks, as in the manifest. `onnxruntime-exact` is ONNX Runtime on the CPU without its fused integer kernels, where the
target is ONNX Runtime; graphs of other targets always run that way there.
"""

_NAMES: Mapping[str, str] = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime on CUDA",
    "onnxruntime-exact": "ONNX Runtime's exact mode",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "torch": "PyTorch",
}


def named(runtime: str) -> str:
    """Return the name of a runtime, for people to read; that of the manifest if it is unknown."""
    return _NAMES.get(runtime, runtime)


class AskedTarget(Protocol):
    """The plan's section `target`."""

    @property
    def name(self) -> Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]: ...
    @property
    def provider(self) -> Provider: ...
    @property
    def measure(self) -> Measure | None: ...


@dataclass(frozen=True)
class MeasuredWith:
    """What runs the networks.

    Attributes:
        measure: value of the plan's `target.measure`, with `null` decided.
        runtime: what runs them.
        device: PyTorch's name of the device, for `torch`.
    """

    measure: Measure
    runtime: RuntimeName
    device: str = "cpu"

    @classmethod
    def of(cls, target: AskedTarget, device: str, *, on_a_cluster: bool = False) -> MeasuredWith:
        """Return what the plan asks for. `null` is the target's engines where its device is present, else PyTorch if the calibration device
        is no CPU, else the CPU.

        Args:
            target: target of the plan.
            device: the plan's calibration device.
            on_a_cluster: whether workers run the networks of the walk.

        Raises:
            MissingBackendError: the target's engines are asked for, and its runtime or device is missing.
            UsageError: workers of a cluster cannot run what is asked for.
        """
        asked = target.measure
        if on_a_cluster and asked not in (None, *_on_workers(target)):
            raise UsageError(
                "The workers of a cluster run the graphs of the walk on the target or on ONNX Runtime.",
                found=f'target.measure "{asked}"',
                expected=f"{' or '.join(map(repr, _on_workers(target)))} or null for the target {target.name}",
                mend="change target.measure, or build without --ray",
            )
        if target.name == "onnxruntime":
            asked = asked or "engines"
        elif asked == "engines":
            check_engines(target.name)
        elif asked is None:
            asked = "engines" if _has_engines(target.name) else "cpu" if device == "cpu" or on_a_cluster else "torch"
        if asked == "torch":
            return cls("torch", "torch", device)
        return cls(asked, _runtime(target, asked))


def _on_workers(target: AskedTarget) -> tuple[Measure, ...]:
    """Return what workers of a cluster can measure with."""
    return ("engines",) if target.name == "onnxruntime" else ("engines", "cpu")


def check_engines(flavour: FlavourName) -> None:
    """Raises MissingBackendError if this machine lacks a flavour of TensorRT, or a device for it."""
    FLAVOURS[flavour].load()
    Cuda()


def _has_engines(flavour: FlavourName) -> bool:
    try:
        check_engines(flavour)
    except MissingBackendError:
        return False
    return True


def _runtime(target: AskedTarget, measure: Measure) -> RuntimeName:
    if target.name != "onnxruntime":
        return target.name if measure == "engines" else "onnxruntime"
    if measure == "cpu":
        return "onnxruntime-exact"
    return "onnxruntime-cuda" if target.provider == "CUDA" else "onnxruntime"
