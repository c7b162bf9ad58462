"""Hold a part's configuration against the class that it is for: diffusers itself ignores a key that the class does not know."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import UsageError

OLD_DEFAULTS: Mapping[str, Any] = {"predict_epsilon": True, "tensor_format": "pt", "clip_denoised": True}
"""Keys that diffusers has dropped, with the value that says what it does now."""

EMA_KEYS = ("decay", "min_decay", "update_after_step", "use_ema_warmup", "inv_gamma", "power", "optimization_step")
"""Keys that diffusers' `EMAModel` writes into the configuration of the network whose weights it averages."""

DERIVED = ("block_out_channels", "force_upcast")
"""Keys that some classes add to their configuration themselves."""


def defaults(kind: str) -> dict[str, Any]:
    """Return the keys of a class of diffusers with their defaults.

    Raises:
        UsageError: diffusers has no such class.
    """
    import diffusers

    found = getattr(diffusers, kind, None)
    if found is None:
        raise UsageError(
            "The model's configuration names an unknown class.",
            found=kind,
            expected=f"a class of diffusers {diffusers.__version__}, which is installed",
        )
    parameters = inspect.signature(found.__init__).parameters
    return {name: one.default for name, one in parameters.items() if name != "self"}


def is_class(kind: str) -> bool:
    """Return whether the installed diffusers has a class of this name."""
    import diffusers

    return hasattr(diffusers, kind)


def unknown_keys(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a class does not know, without private ones and those that say nothing.

    A class that diffusers does not have may know any key. Keys of its class's older form that have their default say nothing either.
    """
    if not is_class(kind):
        return {}
    known, older = (*defaults(kind), *DERIVED, *EMA_KEYS), {**defaults(str(config["_class_name"])), **OLD_DEFAULTS}
    return {
        key: value for key, value in config.items() if not key.startswith("_") and key not in known and value and value != older.get(key)
    }


def check_keys(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with keys that its class does not know, unless they are private or say nothing.

    Raises:
        UsageError: there is such a key.
    """
    if config.get("quantization_config"):
        raise UsageError(
            "The model is quantized already.",
            found=f"{folder}: quantization_config = {config['quantization_config']}",
            expected="a model with its weights as they were trained",
            mend="take the model that this one was made from",
        )
    unknown = unknown_keys(kind, config)
    if unknown:
        raise UsageError(
            "The model's configuration has a key that its class does not know.",
            found=f"{folder}: " + ", ".join(f"{key} = {value}" for key, value in unknown.items()),
            expected=f"keys of diffusers' {kind}",
            mend="install the version of diffusers that saved the model, or remove the key if it changes nothing",
        )
