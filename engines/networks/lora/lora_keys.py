"""What the keys of a LoRA file mean: the part of the pipeline, the layer, and what the tensor is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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

LYCORIS = (
    "hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
KINDS: Mapping[str, str] = {
    "lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid",
    "lora_magnitude_vector": "magnitude", "dora_scale": "dora_scale",
    "diff": "diff", "w_norm": "diff", "diff_b": "diff_b", "b_norm": "diff_b",
    **{name: name for name in LYCORIS},
}  # fmt: skip
"""What a tensor is, by the last part of its key. There are also `alpha`, and `up_bias`, a bias of `up`."""

KEY = re.compile(rf"^(?P<layer>.+?)[._](?P<name>{'|'.join(KINDS)})(?P<adapter>\.(?!weight$|bias$)\w+)?(?P<end>\.weight|\.bias)?$")
ALPHA = re.compile(r"^(?P<stem>.+)\.alphas?$")

ATTENTION: Mapping[str, str] = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
TEXT_ATTENTION: Mapping[str, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
"""Layers of an attention, by what older versions of diffusers called them: in the denoiser, and in a text encoder."""

FACTORS: Mapping[str, str] = {"down": "lora_A", "up": "lora_B"}
OLD_ATTENTION = re.compile(r"\.to_(q|k|v|out)_lora\.(down|up)")
OLD_FACTOR = re.compile(r"\.(?:lora_linear_layer|lora)\.(down|up)")
"""How these versions wrote the factors of PEFT."""

OTHER_KINDS: Mapping[str, str] = {
    r"[._]b?oft_": "OFT",
    r"[._]lora_embedding_": "change of an embedding",
    r"\.(weight|bias)$": "whole weight or bias, not a change of one",
}
"""Kinds of tensors that are not read, by what their keys contain."""


@dataclass(frozen=True)
class LoraKey:
    """A key, understood.

    Attributes:
        part: part of the pipeline, or `UNPLACED`.
        layer: name of the layer, as the file spells it.
        kind: what the tensor is: a value of `KINDS`, `alpha` or `up_bias`.
    """

    part: str
    layer: str
    kind: str


def parse_key(key: str) -> LoraKey | None:
    """Return what a key means; None if it is of no supported kind."""
    name = key.removeprefix(PEFT_PREFIX)
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    part, name = PREFIXES.get(prefix, UNPLACED), name.removeprefix(prefix)
    if alpha := ALPHA.match(name):
        return LoraKey(part, _layer_of_alpha(alpha["stem"], part), "alpha")
    found = KEY.match(_current(name, text=part.startswith("text")))
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
    names = (_current(stem + end, text=part.startswith("text")) for end in ("", ".down.weight", ".lora.down.weight"))
    return next((found["layer"] for found in map(KEY.match, names) if found), stem)


def _current(key: str, *, text: bool) -> str:
    """Return a key without its prefix as PEFT spells it; older versions of diffusers wrote `attn1.processor.to_q_lora.down.weight` for
    `attn1.to_q.lora_A.weight`.

    Args:
        key: any key; those that diffusers never wrote stay as they are.
        text: whether it belongs to a text encoder: `to_q_lora` meant `q_proj` there.
    """
    layers = TEXT_ATTENTION if text else ATTENTION
    key = key.replace(".processor.", ".").replace(".to_out.lora_magnitude_vector", ".to_out.0.lora_magnitude_vector")
    key = OLD_ATTENTION.sub(lambda found: f".{layers[found[1]]}.{FACTORS[found[2]]}", key)
    return OLD_FACTOR.sub(lambda found: f".{FACTORS[found[1]]}", key)
