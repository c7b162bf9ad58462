"""What the keys of a LoRA file mean: the part of the pipeline, the layer, and what the tensor is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ptqd_export.models.lora.diffusers_keys import current_key

DENOISER = "unet"
"""Name of the denoiser in this room, whichever network it is."""

UNPLACED = ""
"""Name of the part that a key belongs to, if the key does not say."""

PEFT_PREFIX = "base_model.model."
"""Prefix of the keys of an adapter that PEFT saved: the network's place in PEFT's own module."""

PREFIXES: Mapping[str, str] = {
    **dict.fromkeys(("unet.", "transformer.", "model.diffusion_model.", "diffusion_model."), DENOISER),
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    **dict.fromkeys(("lora_unet_", "lora_transformer_"), DENOISER),
    "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
}  # fmt: skip
"""Parts of the pipeline, by the prefix of a key: prefixes of diffusers, PEFT and ComfyUI, then of kohya's trainers."""

Kind: TypeAlias = Literal["down", "up", "mid", "alpha", "magnitude", "dora_scale", "up_bias", "diff", "diff_b"]

KINDS: Mapping[str, Kind] = {
    "lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid",
    "lora_magnitude_vector": "magnitude", "dora_scale": "dora_scale", "diff": "diff", "diff_b": "diff_b",
}  # fmt: skip
KEY = re.compile(rf"^(?P<layer>.+?)[._](?P<name>{'|'.join(KINDS)})(?P<adapter>\.(?!weight$|bias$)\w+)?(?P<end>\.weight|\.bias)?$")
ALPHA = re.compile(r"^(?P<stem>.+)\.alphas?$")

OTHER_KINDS: Mapping[str, str] = {
    r"[._]hada_": "LoHa",
    r"[._]lokr_": "LoKr",
    r"[._]b?oft_": "OFT",
    r"[._]lora_embedding_": "change of an embedding",
    r"[._][wb]_norm$": "change of a normalization",
    r"\.(weight|bias)$": "whole weight or bias, not a change of one",
}
"""Kinds of tensors that are not read, by what their keys contain."""


@dataclass(frozen=True)
class LoraKey:
    """A key, understood.

    Attributes:
        part: part of the pipeline, or `UNPLACED`.
        layer: name of the layer, as the file spells it.
        kind: what the tensor is.
    """

    part: str
    layer: str
    kind: Kind


def parse_key(key: str) -> LoraKey | None:
    """Return what a key means; None if it is of no supported kind."""
    name = key.removeprefix(PEFT_PREFIX)
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    part, name = PREFIXES.get(prefix, UNPLACED), name.removeprefix(prefix)
    if alpha := ALPHA.match(name):
        return LoraKey(part, _layer_of_alpha(alpha["stem"], part), "alpha")
    found = KEY.match(current_key(name, text=part.startswith("text")))
    if found is None:
        return None
    kind, end = KINDS[found["name"]], found["end"]
    if found["name"] == "lora_B" and end == ".bias":
        return LoraKey(part, found["layer"], "up_bias")
    return None if end == ".bias" else LoraKey(part, found["layer"], kind)


def kind_of_other(key: str) -> str:
    """Return the kind of a key that `parse_key` does not understand, for error messages."""
    return next((kind for pattern, kind in OTHER_KINDS.items() if re.search(pattern, key)), "unknown kind")


def _layer_of_alpha(stem: str, part: str) -> str:
    """Return the layer of an alpha, whose key ends after the layer, after `lora`, or after the key of a factor."""
    names = (current_key(stem + end, text=part.startswith("text")) for end in ("", ".down.weight", ".lora.down.weight"))
    return next((found["layer"] for found in map(KEY.match, names) if found), stem)
