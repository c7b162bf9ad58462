"""diffusers' own conversions of keys, which older versions of diffusers wrote, to the keys that PEFT writes."""

from __future__ import annotations

from engines.errors import PtqdError


def current_key(key: str, *, text: bool) -> str:
    """Return a key without its prefix as PEFT spells it: `attn1.processor.to_q_lora.down.weight` is `attn1.to_q.lora_A.weight`.

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
