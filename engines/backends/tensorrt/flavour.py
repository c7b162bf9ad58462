"""The two flavours of TensorRT as a table: every difference between them is a field here, and there is no global switch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from engines.errors import MissingBackendError

FlavourName: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Flavour:
    """One flavour of TensorRT.

    Attributes:
        name: name of the flavour in plans.
        import_module: function that imports and returns the flavour's Python module.
        extra: extra of ptqd-export that installs the flavour.
        portable: whether engines are finished on the device that opens them, so that they can be built without a GPU and for any GPU.
        timing_cache: whether the builder times kernels and keeps the times in a file.
        runtime_cache: whether opening an engine compiles kernels and keeps them in a file.
        deferred_weights: whether weights can be unloaded from the device between runs.
    """

    name: FlavourName
    import_module: Callable[[], Any]
    extra: str
    portable: bool
    timing_cache: bool
    runtime_cache: bool
    deferred_weights: bool

    def load(self) -> Any:
        """Import the flavour's Python module and return it.

        Raises:
            MissingBackendError: the flavour is not installed, or its libraries cannot be loaded.
        """
        try:
            return self.import_module()
        except (ImportError, OSError) as error:
            raise MissingBackendError(
                f"The runtime {self.name} is not installed.", found=str(error), mend=f"pip install 'ptqd-export[{self.extra}]'"
            ) from error


FLAVOURS: Mapping[FlavourName, Flavour] = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            name="tensorrt",
            import_module=lambda: importlib.import_module("tensorrt"),
            extra="gpu",
            portable=False,
            timing_cache=True,
            runtime_cache=False,
            deferred_weights=False,
        ),
        Flavour(
            name="tensorrt-rtx",
            import_module=lambda: importlib.import_module("tensorrt_rtx"),
            extra="rtx",
            portable=True,
            timing_cache=False,
            runtime_cache=True,
            deferred_weights=True,
        ),
    )
}


def network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network, whose types follow the graph. Releases with only such networks have no flag for it."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)
