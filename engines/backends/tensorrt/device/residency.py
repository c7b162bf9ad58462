"""Decide which engines' weights are on the device when not all fit at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

from engines.errors import PtqdError


class Weights(Protocol):
    """The weights of one engine, which can be loaded to and unloaded from the device."""

    label: str

    @property
    def weights_bytes(self) -> int: ...

    def load_weights(self) -> None: ...

    def unload_weights(self) -> None: ...


class Residency:
    """Loads weights to the device when they are needed, unloading the least recently used ones to make room.

    Args:
        free_bytes: function that returns the free memory of the device in bytes.
    """

    def __init__(self, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._resident: WeakKeyDictionary[Weights, None] = WeakKeyDictionary()  # least recently used first

    def require(self, weights: Weights) -> None:
        """Make sure that these weights are on the device.

        Raises:
            PtqdError: the weights do not fit even alone.
        """
        if weights in self._resident:
            del self._resident[weights]
        else:
            self._make_room(weights)
            weights.load_weights()
        self._resident[weights] = None

    def _make_room(self, weights: Weights) -> None:
        while self._resident and self._free_bytes() < weights.weights_bytes:
            oldest = next(iter(self._resident))
            del self._resident[oldest]
            oldest.unload_weights()
        missing = weights.weights_bytes - self._free_bytes()
        if missing > 0:
            raise does_not_fit(weights.label, weights.weights_bytes, missing)


def does_not_fit(label: str, needed: int, missing: int) -> PtqdError:
    return PtqdError(
        f"The weights of {label} do not fit on the device.",
        found=f"{missing} bytes missing",
        expected=f"{needed} bytes free",
        mend="end other processes that use the device, lower the batch size, or use a precision with smaller weights",
    )
