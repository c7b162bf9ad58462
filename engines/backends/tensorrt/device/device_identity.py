"""Identify the device that an engine is built for, as part of the engine's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import Flavour
from engines.errors import MissingBackendError

ANY = "any"


@dataclass(frozen=True)
class DeviceIdentity:
    """What an engine depends on besides its graph and options: compute capability and driver, or `any` for both."""

    compute_capability: str
    driver: str


LEAST_COMPUTE_CAPABILITY: Mapping[str, str] = {"fp8": "8.9", "mxfp8": "8.9", "nvfp4": "10.0", "nvfp4a8": "10.0"}
"""Minimum compute capability of precisions that not every TensorRT device supports: NVIDIA's GPUs multiply 8-bit floats since Ada,
and 4-bit floats since Blackwell."""


def check_precision(precision: str, cuda: Cuda) -> None:
    """Check that the device supports a precision.

    Raises:
        MissingBackendError: the device is too old.
    """
    least, found = LEAST_COMPUTE_CAPABILITY.get(precision, "0.0"), cuda.compute_capability()
    if _order(found) < _order(least):
        raise MissingBackendError(
            f"This device cannot run {precision}.",
            found=f"{cuda.device_name()}, compute capability {found}",
            expected=f"compute capability {least} or newer",
            mend="sample with another precision of the bundle, such as w8a8, or use another device",
        )


def _order(compute_capability: str) -> tuple[int, ...]:
    return tuple(map(int, compute_capability.split(".")))


def device_identity(flavour: Flavour) -> DeviceIdentity:
    """Return the identity of this device, or `any` for a flavour with portable engines.

    Raises:
        MissingBackendError: the flavour builds for this machine's device, and there is none.
    """
    if flavour.portable:
        return DeviceIdentity(ANY, ANY)
    cuda = Cuda()
    return DeviceIdentity(cuda.compute_capability(), cuda.driver_version())
