"""The device that an engine is for, as part of its name."""

from __future__ import annotations

from dataclasses import dataclass

from engines.tensorrt.cuda import Cuda
from engines.tensorrt.flavour import Flavour

ANY = "any"


@dataclass(frozen=True)
class DeviceIdentity:
    """What an engine depends on besides its graph and options: compute capability and driver, or `any` of each."""

    compute_capability: str
    driver: str


def device_identity(flavour: Flavour) -> DeviceIdentity:
    """Portable engines are for any device.

    Raises:
        MissingBackendError: the flavour builds for the device at hand, and there is none.
    """
    if flavour.portable:
        return DeviceIdentity(ANY, ANY)
    cuda = Cuda()
    return DeviceIdentity(cuda.compute_capability(), cuda.driver_version())
