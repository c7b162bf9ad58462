"""The settings of a LoRA's training: PEFT's `adapter_config.json`, or what diffusers writes into the metadata of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.errors import UsageError
from engines.networks.lora.lora_keys import DENOISER

METHOD = "LORA"
"""PEFT's name for the method whose files are read."""

VARIANTS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config", "use_bdlora", "use_qalora",
)  # fmt: skip
"""Settings of PEFT under which the weights do not become `W + scale * B A`."""

RESIDUAL_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Starts of training (`init_lora_weights`) that change the model's own weights: the factors do not fit the original weights."""

PATTERN = re.compile(r"(?!.*\)[*+?])[\w.\-^$|()\\\[\]]*([*+?][\w.\-^$|()\\\[\]]*){0,2}")
"""Expressions for layer names that are matched. Others might take forever."""


EXPECTED: Mapping[type, str] = {bool: "true or false", dict: "an object", float: "a number"}
LARGEST = 1e30


@dataclass(frozen=True)
class AdapterSettings:
    """Settings of a LoRA's training.

    Attributes:
        source: name of the file that holds them, for error messages.
        values: the settings. With the prefix of a part (`unet.lora_alpha`) they are for that part.
        complete: whether alpha must be among them, unless it is beside the factors.
    """

    source: str
    values: Mapping[str, Any]
    complete: bool

    def __post_init__(self) -> None:
        """Refuse what the factors alone do not say.

        Raises:
            UsageError: another method, or a variant of LoRA that is not supported.
        """
        for key, value in self.values.items():
            name = key.rpartition(".")[2]
            residual = name == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(RESIDUAL_STARTS)
            if (name == "peft_type" and value != METHOD) or (name in VARIANTS and value) or residual:
                raise UsageError(
                    "This kind of LoRA is not supported.",
                    found=f"{self.source}: {key} = {str(value)[:80]}",
                    expected=f"peft_type = {METHOD}, without a variant that changes how the factors are used",
                    mend="merge the adapter into the model with PEFT (`merge_and_unload`), save the model, and build from that model",
                )

    def scale(self, part: str, layer: str, rank: int, alpha: float | None) -> float:
        """Return the factor of `B A`: `alpha / rank`, or `alpha / sqrt(rank)` if the rank is stabilized (Kalajdzievski 2023).

        Args:
            part: part of the pipeline.
            layer: name of the layer, as the file spells it.
            rank: rank of the layer's factors.
            alpha: alpha beside the factors, or None.

        Raises:
            UsageError: a setting is missing, is not of its type, or is of another rank.
        """
        if alpha is not None:
            return alpha / rank
        stated = self._number(part, layer, "rank_pattern", "r")
        if stated is not None and stated != rank:
            raise UsageError(
                "The LoRA's settings do not fit its factors.",
                found=f"{self.source}: rank {stated:g} for {layer}",
                expected=f"{rank}, the rank of the factors",
                mend="use the settings that were saved together with the factors",
            )
        found = self._number(part, layer, "alpha_pattern", "lora_alpha")
        if found is None and self.complete:
            raise UsageError(
                "The LoRA's alpha is unknown.",
                found=f"no lora_alpha in {self.source}",
                expected="the adapter_config.json that PEFT saves beside adapter_model.safetensors",
                mend="copy adapter_config.json into the folder of the weights",
            )
        return (rank if found is None else found) / (math.sqrt(rank) if self._get(part, "use_rslora", bool) else rank)

    def needs_magnitude(self, part: str) -> bool:
        """Return whether every layer must have a magnitude."""
        return bool(self._get(part, "use_dora", bool))

    def _number(self, part: str, layer: str, pattern: str, common: str) -> float | None:
        """Return the value of the first pattern that matches the layer, as PEFT does, or else the common value."""
        patterns = (self._get(part, pattern, dict) or {}).items()
        values = (
            self._checked(f"{pattern}[{expression!r}]", value, float) for expression, value in patterns if self._matches(expression, layer)
        )
        found: float | None = next(values, None)
        return self._get(part, common, float) if found is None else found

    def _matches(self, expression: str, layer: str) -> bool:
        try:
            if PATTERN.fullmatch(expression):
                return re.match(rf"(.*\.)?({expression})$", layer) is not None
        except re.error:
            pass
        raise UsageError(
            "A setting of the LoRA is not supported.",
            found=f"{self.source}: a pattern {expression[:80]!r}",
            expected="names of layers, or expressions with at most two repetitions and none of a group",
            mend="write the names of the layers in its place",
        )

    def _get(self, part: str, name: str, kind: type) -> Any:
        prefixes = ("unet.", "transformer.", "") if part == DENOISER else (f"{part}.", "")
        key = next((key for prefix in prefixes if (key := prefix + name) in self.values), name)
        return self._checked(key, self.values.get(key), kind)

    def _checked(self, key: str, value: Any, kind: type) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
        if value is None or (is_number if kind is float else isinstance(value, kind)):
            return value
        raise UsageError(
            "A setting of the LoRA is invalid.",
            found=f"{self.source}: {key} = {str(value)[:80]}",
            expected=EXPECTED[kind],
            mend="copy the file again",
        )
