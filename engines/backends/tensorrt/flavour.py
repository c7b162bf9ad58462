"""The two flavours of TensorRT, side by side. All that differs between them is a column here; none of it is global."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from engines.errors import MissingBackendError

FlavourName: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Flavour:
    """One flavour.

    Attributes:
        name: as plans spell it.
        import_module: its Python module, imported when called.
        extra: of ptqd-export, that installs it.
        portable: engines are finished on the device that opens them, so that they are built without a GPU and for any of them.
        timing_cache: the builder times kernels, and keeps the times in a file.
        runtime_cache: opening an engine compiles kernels, and keeps them in a file.
        deferred_weights: weights can leave the device between runs, and come back.
    """

    name: FlavourName
    import_module: Callable[[], Any]
    extra: str
    portable: bool
    timing_cache: bool
    runtime_cache: bool
    deferred_weights: bool

    def load(self) -> Any:
        """The flavour's Python module.

        Raises:
            MissingBackendError: it is not installed, or its libraries cannot be loaded.
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
    """Strongly typed: precision is what the graph says. Releases that know no other kind have no flag for it."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)
