"""Sort the tensors of a LoRA file into the changes of layers."""

from __future__ import annotations

from collections.abc import Set
from typing import TypeAlias

import torch
from torch import Tensor

from engines.errors import UsageError
from engines.networks.lora.lora_file import LoraFile, tensors_by_layer
from ptqd_export.models.lora.layer_change import LayerChange, Magnitude
from ptqd_export.models.lora.low_rank import LowRank, Matrix

Tensors: TypeAlias = dict[str, Tensor]
"""A layer's tensors, by `LoraKey.kind`."""

PAIR: Set[str] = {"down", "up"}
HADAMARD: Set[str] = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
ALONE: Set[str] = {"diff", "diff_b"}
"""Kinds of tensors that change a layer by themselves."""


def lora_layers(file: LoraFile) -> dict[str, dict[str, LayerChange]]:
    """Return the changes by part of the pipeline, then by layer name as the file spells it.

    Raises:
        UsageError: a tensor is of no supported kind, or a layer's tensors are incomplete.
    """
    layers: dict[str, dict[str, LayerChange]] = {}
    for (part, layer), found in tensors_by_layer(file, _unknown).items():
        tensors = {kind: torch.from_numpy(value) for kind, value in found.items()}
        layers.setdefault(part, {})[layer] = _change(file, part, layer, tensors)
    return layers


def _unknown(found: str) -> UsageError:
    return UsageError(
        "This kind of LoRA is not supported.",
        found=found,
        expected="factors or differences of weights, with the names that diffusers, PEFT, kohya's trainers or LyCORIS give them",
        mend="merge the LoRA into the model with the library that trained it, save the model, and omit model.lora",
    )


def _change(file: LoraFile, part: str, layer: str, tensors: Tensors) -> LayerChange:
    missing = _wanted(tensors.keys(), dora=file.settings.needs_magnitude(part)) - tensors.keys()
    if missing:
        raise UsageError(
            "The LoRA is incomplete.",
            found=f"{file.path}: {f'{part} {layer}'.strip()} has {', '.join(tensors)}",
            expected=f"{' and '.join(sorted(missing))} too",
            mend="copy the file again, or save it again from its trainer",
        )
    low_rank = None if tensors.keys() <= ALONE | {"alpha"} else _low_rank(file, part, layer, tensors)
    bias = tensors.get("diff_b")
    if low_rank is not None and "up_bias" in tensors:
        added = low_rank.scale * tensors["up_bias"].float()
        bias = added if bias is None else added + bias
    return LayerChange(low_rank, _magnitude(tensors), tensors.get("diff"), bias)


def _wanted(kinds: Set[str], *, dora: bool) -> Set[str]:
    """Return the kinds of tensors without which a layer's tensors are incomplete."""
    if kinds & ALONE and kinds <= ALONE | {"alpha"}:
        return kinds
    wanted = PAIR
    if any(kind.startswith("hada") for kind in kinds):
        wanted = HADAMARD
    if any(kind.startswith("lokr") for kind in kinds):
        both = ((name, {f"{name}_a", f"{name}_b"}) for name in ("lokr_w1", "lokr_w2"))
        wanted = {kind for name, factors in both for kind in (factors if kinds & factors else {name})}
    return wanted | ({"magnitude"} if dora and "dora_scale" not in kinds else set())


def _low_rank(file: LoraFile, part: str, layer: str, tensors: Tensors) -> LowRank:
    matrices, alpha = _matrices(tensors), tensors.get("alpha")
    if any(one.shape is None for one in matrices) or (alpha is not None and alpha.numel() != 1):
        shapes = ", ".join(f"{kind} {tuple(value.shape)}" for kind, value in tensors.items())
        raise UsageError(
            "The LoRA has factors that do not fit each other.",
            found=f"{file.path}: {f'{part} {layer}'.strip()}, {shapes}",
            expected="up [out, rank] and down [rank, in, ...], and one number alpha",
            mend="copy the file again",
        )
    rank = next((one.rank for one in matrices if one.rank is not None), None)
    # LyCORIS gives a product of two whole matrices the scale 1, whatever alpha it stores.
    scale = 1.0 if rank is None else file.settings.scale(part, layer, rank, None if alpha is None else float(alpha))
    return LowRank(matrices, "kronecker" if tensors.keys().isdisjoint(HADAMARD) else "entries", scale)


def _matrices(tensors: Tensors) -> tuple[Matrix, ...]:
    if tensors.keys() >= PAIR:
        return (Matrix(tensors["up"], tensors.get("mid"), tensors["down"]),)
    if tensors.keys() >= HADAMARD:
        return Matrix.of(tensors, "hada_w1", "hada_t1"), Matrix.of(tensors, "hada_w2", "hada_t2")
    return Matrix.of(tensors, "lokr_w1", "lokr_t1"), Matrix.of(tensors, "lokr_w2", "lokr_t2")


def _magnitude(tensors: Tensors) -> Magnitude | None:
    """Return the norms. PEFT's are those of the outputs, whatever their shape; the shape of the others says whose they are."""
    if "magnitude" in tensors:
        return Magnitude(tensors["magnitude"].flatten())
    return Magnitude(tensors["dora_scale"]) if "dora_scale" in tensors else None
