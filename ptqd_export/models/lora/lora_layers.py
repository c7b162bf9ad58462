"""Sort the tensors of a LoRA file into the changes of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from engines.errors import UsageError
from ptqd_export.models.lora.layer_change import LayerChange, LowRank, Magnitude
from ptqd_export.models.lora.lora_file import LoraFile
from ptqd_export.models.lora.lora_keys import Kind, kind_of_other, parse_key

Tensors: TypeAlias = dict[Kind, Tensor]
PAIR = frozenset[Kind](("down", "up"))
ALONE = frozenset[Kind](("diff", "diff_b"))
"""Kinds of tensors that change a layer by themselves."""


def lora_layers(file: LoraFile) -> dict[str, dict[str, LayerChange]]:
    """Return the changes by part of the pipeline, then by layer name as the file spells it.

    Raises:
        UsageError: a tensor is of no supported kind, or a layer's tensors are incomplete.
    """
    layers: dict[str, dict[str, LayerChange]] = {}
    for (part, layer), tensors in _by_layer(file).items():
        layers.setdefault(part, {})[layer] = _change(file, part, layer, tensors)
    return layers


def _by_layer(file: LoraFile) -> Mapping[tuple[str, str], Tensors]:
    """Return the tensors by part and layer."""
    found: dict[tuple[str, str], Tensors] = {}
    for key, value in file.tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            raise UsageError(
                "This kind of LoRA is not supported.",
                found=f"{file.path}: {key} ({kind_of_other(key)})",
                expected="pairs of low-rank factors, or differences, with the names that diffusers, PEFT or kohya's trainers give them",
                mend="merge the LoRA into the model with the library that trained it, save the model, and omit model.lora",
            )
        tensors = found.setdefault((parsed.part, parsed.layer), {})
        if parsed.kind in tensors:
            raise UsageError(
                "The LoRA changes a layer twice.",
                found=f"{file.path}: {key}, and another key of the same meaning",
                expected="one change of each layer",
                mend="save one adapter alone",
            )
        tensors[parsed.kind] = value
    return found


def _change(file: LoraFile, part: str, layer: str, tensors: Tensors) -> LayerChange:
    _check_complete(file, part, layer, tensors)
    low_rank = _low_rank(file, part, layer, tensors) if tensors.keys() >= PAIR else None
    bias = tensors.get("diff_b")
    if low_rank is not None and "up_bias" in tensors:
        added = low_rank.scale * tensors["up_bias"].float()
        bias = added if bias is None else added + bias
    return LayerChange(low_rank, _magnitude(tensors), tensors.get("diff"), bias)


def _check_complete(file: LoraFile, part: str, layer: str, tensors: Tensors) -> None:
    kinds = tensors.keys()
    wanted = set(PAIR) if kinds - ALONE - {"alpha"} or not kinds & ALONE else set()
    if wanted and file.settings.needs_magnitude(part) and "dora_scale" not in kinds:
        wanted.add("magnitude")
    if not kinds >= wanted:
        raise UsageError(
            "The LoRA is incomplete.",
            found=f"{file.path}: {f'{part} {layer}'.strip()} has {', '.join(kinds)}",
            expected=" and ".join(sorted(wanted)),
            mend="copy the file again, or save it again from its trainer",
        )


def _low_rank(file: LoraFile, part: str, layer: str, tensors: Tensors) -> LowRank:
    down, alpha = tensors["down"], tensors.get("alpha")
    if down.ndim < 2 or 0 in down.shape or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{kind} {tuple(value.shape)}" for kind, value in tensors.items())
        raise UsageError(
            "The LoRA has a layer without a rank.",
            found=f"{file.path}: {layer}, {shapes}",
            expected="down [rank, in, ...], and one number alpha",
            mend="copy the file again",
        )
    scale = file.settings.scale(part, layer, down.shape[0], None if alpha is None else float(alpha))
    return LowRank(down, tensors["up"], tensors.get("mid"), scale)


def _magnitude(tensors: Tensors) -> Magnitude | None:
    """Return the norms. PEFT's are those of the outputs, whatever their shape; the shape of the others says whose they are."""
    if "magnitude" in tensors:
        return Magnitude(tensors["magnitude"].flatten())
    return Magnitude(tensors["dora_scale"]) if "dora_scale" in tensors else None
