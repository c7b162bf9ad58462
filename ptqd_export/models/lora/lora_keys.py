"""What the keys of a LoRA file mean: the part of the pipeline, the layer, and what the tensor is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from engines.errors import PtqdError

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
    """Return a key without its prefix as PEFT spells it, by diffusers' own conversions of the keys that its older versions wrote.

    `attn1.processor.to_q_lora.down.weight` is `attn1.to_q.lora_A.weight` today.

    Args:
        key: any key; those that diffusers never wrote stay as they are.
        text: whether it belongs to a text encoder: `to_q_lora` meant `q_proj` there.

    Raises:
        PtqdError: the installed diffusers does not have the conversions.
    """
    try:
        from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    except ImportError as error:
        raise PtqdError(
            "The installed diffusers cannot convert keys of LoRA files.",
            found=str(error),
            expected="the conversions of diffusers.utils.state_dict_utils",
            mend="install a version of diffusers that has them, such as 0.42",
        ) from error
    found = {key: None}
    if text:
        found = convert_state_dict_to_peft(found, StateDictType.DIFFUSERS_OLD)
    found = convert_unet_state_dict_to_peft(convert_state_dict_to_peft(found, StateDictType.DIFFUSERS))
    (name,) = found
    return str(name)
