"""The device that an engine is for, as part of its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import Flavour
from engines.errors import MissingBackendError

ANY = "any"


@dataclass(frozen=True)
class DeviceIdentity:
    """What an engine depends on besides its graph and options: compute capability and driver, or `any` of each."""

    compute_capability: str
    driver: str


LEAST_COMPUTE_CAPABILITY: Mapping[str, str] = {"fp8": "8.9"}
"""By precision, where not every device that TensorRT takes has its products: NVIDIA's GPUs multiply 8-bit floats from Ada on."""


def check_precision(precision: str, cuda: Cuda) -> None:
    """Whether the device has the products of a precision.

    Raises:
        MissingBackendError: it is too old.
    """
    least, found = LEAST_COMPUTE_CAPABILITY.get(precision, "0.0"), cuda.compute_capability()
    if _order(found) < _order(least):
        raise MissingBackendError(
            f"This device cannot run {precision}.",
            found=f"{cuda.device_name()}, compute capability {found}",
            expected=f"compute capability {least} or newer",
            mend="sample with another precision of the bundle, such as w8a8, or on another device",
        )


def _order(compute_capability: str) -> tuple[int, ...]:
    return tuple(map(int, compute_capability.split(".")))


def device_identity(flavour: Flavour) -> DeviceIdentity:
    """Portable engines are for any device.

    Raises:
        MissingBackendError: the flavour builds for the device at hand, and there is none.
    """
    if flavour.portable:
        return DeviceIdentity(ANY, ANY)
    cuda = Cuda()
    return DeviceIdentity(cuda.compute_capability(), cuda.driver_version())
