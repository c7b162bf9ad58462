"""The run time: samplers, corrections, engines swapped across timesteps, `ptqd-run`. Imports neither torch nor onnx.

The names in `__all__` are public and stay; docs/python.md describes them. They are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.api.chain_step import ChainStep
    from engines.api.layer_info import ActivationScale, LayerBits, LayerInfo, WeightScales
    from engines.api.open_bundle import OpenBundle, open_bundle
    from engines.api.precision_info import PrecisionInfo
    from engines.api.schedule_info import ScheduleInfo
    from engines.errors import BundleError, MissingBackendError, PtqdError, UsageError

    __version__: str

__all__ = [
    "ActivationScale",
    "BundleError",
    "ChainStep",
    "LayerBits",
    "LayerInfo",
    "MissingBackendError",
    "OpenBundle",
    "PrecisionInfo",
    "PtqdError",
    "ScheduleInfo",
    "UsageError",
    "WeightScales",
    "__version__",
    "open_bundle",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562). Imports are not statements: every module would depend on them."""
    match name:
        case "__version__":
            found: object = import_module("importlib.metadata").version("ptqd-export")
        case "OpenBundle" | "open_bundle":
            found = getattr(import_module("engines.api.open_bundle"), name)
        case "ChainStep":
            found = import_module("engines.api.chain_step").ChainStep
        case "ActivationScale" | "LayerBits" | "LayerInfo" | "WeightScales":
            found = getattr(import_module("engines.api.layer_info"), name)
        case "PrecisionInfo":
            found = import_module("engines.api.precision_info").PrecisionInfo
        case "ScheduleInfo":
            found = import_module("engines.api.schedule_info").ScheduleInfo
        case "BundleError" | "MissingBackendError" | "PtqdError" | "UsageError":
            found = getattr(import_module("engines.errors"), name)
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
