"""Decide which engines' weights are on the device when not all fit at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeAlias
from weakref import WeakKeyDictionary

from engines.errors import PtqdError

FreeBytes: TypeAlias = Callable[[], int]


class Weights(Protocol):
    """The weights of one engine, which can be loaded to and unloaded from the device."""

    label: str

    @property
    def weights_bytes(self) -> int: ...

    def load_weights(self) -> None: ...

    def unload_weights(self) -> None: ...


class Residency:
    """Loads weights to the device when they are needed, unloading the least recently used ones to make room."""

    def __init__(self) -> None:
        self._resident: WeakKeyDictionary[Weights, None] = WeakKeyDictionary()  # least recently used first

    def require(self, weights: Weights, free_bytes: FreeBytes) -> None:
        """Make sure that these weights are on the device.

        Args:
            weights: weights of the engine that runs next.
            free_bytes: returns the free memory of the device in bytes.

        Raises:
            PtqdError: the weights do not fit even alone.
        """
        if weights in self._resident:
            del self._resident[weights]
        else:
            self.make_room(weights.weights_bytes, free_bytes)
            missing = weights.weights_bytes - free_bytes()
            if missing > 0:
                raise does_not_fit(weights.label, weights.weights_bytes, missing)
            weights.load_weights()
        self._resident[weights] = None

    def make_room(self, nbytes: int, free_bytes: FreeBytes) -> None:
        """Unload weights until `nbytes` are free, or none are left."""
        while self._resident and free_bytes() < nbytes:
            oldest = next(iter(self._resident))
            del self._resident[oldest]
            oldest.unload_weights()


@functools.cache
def residency() -> Residency:
    """Return the residency of this process, whose networks, decoders and sizes all take the memory of one device."""
    return Residency()


def does_not_fit(label: str, needed: int, missing: int) -> PtqdError:
    return PtqdError(
        f"The weights of {label} do not fit on the device.",
        found=f"{missing} bytes missing",
        expected=f"{needed} bytes free",
        mend="end other processes that use the device, lower the batch size, or use a precision with smaller weights",
    )
