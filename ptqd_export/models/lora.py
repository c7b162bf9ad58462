"""LoRA files (Hu et al. 2021): low-rank changes of weights, fused into the networks before anything else uses them.

For each layer, a file holds the factors `down` [rank, in, ...] and `up` [out, rank, ...], and sometimes `alpha`. The fused weight is

    W + scale * (alpha / rank) * up @ down

Trainers name the same layer in different ways (`down_blocks.0.attentions.0`, `down_blocks_0_attentions_0`, `attn1.processor.to_q_lora`).
With underscores for dots, and without the word `processor`, all of these names match the names in the network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError
from engines.untrusted.untrusted_json import json_object

PARTS: Mapping[str, str] = {
    "unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
}  # fmt: skip
"""The part of the pipeline that a key belongs to, by the key's prefix: prefixes of diffusers and peft, then of kohya's trainers."""

FACTOR = re.compile(r"^(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<factor>A|B|down|up)(?:\.weight)?$")
FACTORS = {"A": "down", "B": "up", "down": "down", "up": "up"}
ALPHA = ".alpha"
SGM_BLOCK = re.compile(r"^(?P<side>input_blocks|middle_block|output_blocks)_(?P<numbers>\d+(?:_\d+)?)_(?P<rest>.+)$")
SGM_LAYERS = 2
"""Layers per block of SDXL, whose original code numbers the layers of all blocks consecutively."""

TEXT_MODEL = "text_model_"
"""Prefix of layer names in text encoders. In transformers 5, only one of the two kinds has it."""

METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores its training settings."""

OLD_NAMES: Mapping[str, str] = {"to_out": "to_out_0"}
OLD_TEXT_NAMES: Mapping[str, str] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Suffixes of layer names written by older versions of diffusers, and today's suffixes."""


@dataclass(frozen=True)
class LowRank:
    """The low-rank change of one layer's weight."""

    down: Tensor
    up: Tensor
    alpha: float

    def fits(self, weight: Tensor) -> bool:
        """Return whether the shapes fit a weight."""
        rank, out = self.down.shape[0], self.up.shape[0]
        return self.up[0].numel() == rank and out == weight.shape[0] and self.down[0].numel() == weight[0].numel()

    def delta(self, shape: torch.Size) -> Tensor:
        """Return `(alpha / rank) up @ down`, shaped like the weight. For a convolution, `down` holds the kernel."""
        rank = self.down.shape[0]
        return (self.alpha / rank * (self.up.flatten(1).float() @ self.down.flatten(1).float())).reshape(shape)


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    Attributes:
        path: path of the file.
        scale: weight of the change; 0 is no change, 1 is the trained change.
        layers: changes by part of the pipeline, then by layer name, with underscores for dots.
    """

    path: Path
    scale: float
    layers: Mapping[str, Mapping[str, LowRank]]

    def check_parts(self, known: Collection[str]) -> None:
        """Refuse a file that changes parts that the model does not have.

        Raises:
            UsageError: the file changes such a part.
        """
        if unknown := self.layers.keys() - set(known):
            found = f"{self.path}: layers of {', '.join(sorted(unknown))}"
            raise UsageError("The LoRA does not fit the model.", found=found, expected=f"layers of {', '.join(known)}")

    def fuse(self, part: str, network: nn.Module) -> None:
        """Change the weights of a part's network in place.

        Raises:
            UsageError: the file changes layers that the network does not have, or whose weights have another shape.
        """
        known = {_plain(name): module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
        for name, change in self.layers.get(part, {}).items():
            module = _find(known, name, part)
            if module is None or not change.fits(module.weight):
                raise UsageError(
                    "The LoRA does not fit the model.",
                    found=f"{self.path}: {part} {name}, {tuple(change.up.shape)} times {tuple(change.down.shape)}",
                    expected=f"a layer of {part}" if module is None else f"a change of a weight {tuple(module.weight.shape)}",
                    mend="use a LoRA that was trained on this kind of model",
                )
            with torch.no_grad():
                module.weight += self.scale * change.delta(module.weight.shape)


def load_lora(path: Path, scale: float) -> Lora:
    """Read a LoRA from a safetensors file.

    Args:
        path: path of the file.
        scale: see `Lora`.

    Raises:
        UsageError: there is no such file, or it contains anything but pairs of low-rank factors.
        PtqdError: the file cannot be read.
    """
    tensors, metadata = _read(path)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in tensors.items():
        part, layer, what = _parse(path, key)
        found.setdefault((part, layer), {})[what] = value
    layers: dict[str, dict[str, LowRank]] = {}
    for (part, layer), values in found.items():
        if not {"down", "up"} <= values.keys():
            raise UsageError("The LoRA is incomplete.", found=f"{path}: {part} {layer} has {', '.join(values)}", expected="down and up")
        layers.setdefault(part, {})[layer] = LowRank(values["down"], values["up"], _alpha(values, part, metadata))
    return Lora(path, scale, layers)


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError("The LoRA is missing.", found=f"no file {path}", expected="a safetensors file", mend="correct model.lora.path")
    try:
        with safe_open(path, "pt") as file:
            metadata = json_object((file.metadata() or {}).get(METADATA, "{}").encode(), path, PtqdError)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  # not a mapping
    except (SafetensorError, ValueError) as error:
        raise PtqdError("The LoRA cannot be read.", found=f"{path}: {error}", expected="a safetensors file") from error


def _parse(path: Path, key: str) -> tuple[str, str, str]:
    """Return the part, layer and factor (`down`, `up` or `alpha`) that a key names."""
    for prefix, part in PARTS.items():
        name = key.removeprefix(prefix)
        factor = FACTOR.match(name)
        if name != key and (factor or name.endswith(ALPHA)):
            layer = factor["layer"] if factor else name.removesuffix(ALPHA)
            return part, _plain(_diffusers_block(layer)), FACTORS[factor["factor"]] if factor else "alpha"
    raise UsageError(
        "This kind of LoRA is not supported.",
        found=f"{path}: {key}",
        expected="pairs of low-rank factors with the names that diffusers, peft or kohya's trainers give them",
        mend="fuse the LoRA into the model yourself, and save the model",
    )


def _alpha(values: Mapping[str, Any], part: str, metadata: Mapping[str, Any]) -> float:
    """Return the alpha of a layer: its own, else the file's, else the rank."""
    if "alpha" in values:
        return float(values["alpha"])
    if metadata.get(f"{part}.use_rslora") or metadata.get(f"{part}.alpha_pattern"):
        raise UsageError("This kind of LoRA is not supported.", found=f"{part}: use_rslora or alpha_pattern", expected="one lora_alpha")
    return float(metadata.get(f"{part}.lora_alpha", values["down"].shape[0]))


def _diffusers_block(name: str) -> str:
    """Translate `input_blocks_4_1_...`, as SDXL's original code counts, to `down_blocks_1_attentions_0_...`; keep other names."""
    found = SGM_BLOCK.match(name)
    if found is None:
        return name
    numbers = [int(number) for number in found["numbers"].split("_")]
    if found["side"] == "middle_block":
        return f"mid_block_attentions_{numbers[0] - 1}_{found['rest']}"
    block, layer = divmod(numbers[0] - (found["side"] == "input_blocks"), SGM_LAYERS + 1)
    return f"{'down' if found['side'] == 'input_blocks' else 'up'}_blocks_{block}_attentions_{layer}_{found['rest']}"


def _plain(name: str) -> str:
    return name.replace(".", "_").replace("processor_", "")


def _find(known: Mapping[str, nn.Linear | nn.Conv2d], name: str, part: str) -> nn.Linear | nn.Conv2d | None:
    return next((known[spelling] for spelling in _spellings(name, part) if spelling in known), None)


def _spellings(name: str, part: str) -> Iterator[str]:
    """Yield a layer's name, and its names in other versions of diffusers and transformers."""
    text = part != "unet"
    for end, now in {"": "", **(OLD_TEXT_NAMES if text else OLD_NAMES)}.items():
        if name.endswith(end):
            spelling = name.removesuffix(end) + now
            yield spelling
            if text:
                yield spelling.removeprefix(TEXT_MODEL)
                yield f"{TEXT_MODEL}{spelling}"
