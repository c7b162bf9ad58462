"""Find a network's layers by the names that trainers give them.

Names are compared with underscores for dots, and the network says which names there are. diffusers' own tables for kohya's names
(`_convert_non_diffusers_lora_to_diffusers`, `_maybe_map_sgm_blocks_to_diffusers`) are not used. They are private and differ between
versions, lose the number of layers such as `add_embedding.linear_1`, take an upsampler after a block without attention for an attention,
fail on ten input blocks, and drop the original names from a file that has both kinds.
"""

from __future__ import annotations

from torch import Tensor, nn

from engines.networks.lora.layer_aliases import original_names, plain

TEXT_MODEL = "text_model_"
"""Prefix of layer names in text encoders. In transformers 5, only one of the two kinds has it."""


def named_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return every module that has a weight, by every name that it has in LoRA files."""
    layers = {name: module for name, module in network.named_modules() if isinstance(getattr(module, "weight", None), Tensor)}
    originals = {plain(name): layers[now] for name, now in original_names(layers) if now in layers}
    named = originals | {plain(name): module for name, module in layers.items()}
    other = {_without_or_with_text_model(name): module for name, module in named.items()}
    return other | named


def _without_or_with_text_model(name: str) -> str:
    return name.removeprefix(TEXT_MODEL) if name.startswith(TEXT_MODEL) else f"{TEXT_MODEL}{name}"
