"""Conditioning inputs of a network: the model declares them, and the plan provides their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.bundle import manifest
from engines.bundle.manifest import FixedValue
from engines.errors import UsageError
from engines.networks.conditioning import Conditioning, class_labels, load_table

LABELS = "class_labels"
EMBEDDINGS = "encoder_hidden_states"
MASK = "encoder_attention_mask"
POOLED = "text_embeds"
TIME_IDS = "time_ids"
SIZES, REFINER_SIZES = 6, 5
"""Numbers in `time_ids` of SDXL (height and width of the original image, the corner of the crop, height and width of the target image) and
of its refiner, which takes an aesthetic score in place of the target image's size."""

GUIDANCE = "guidance"
"""Guidance scale that a network takes as an input, in place of classifier-free guidance. Its value is the plan's."""

TIMESTEP_COND = "timestep_cond"
"""Guidance scale that a consistency model takes as an embedding beside that of the timestep, in place of classifier-free guidance."""

IMAGE = manifest.IMAGE
"""Image whose channels an adapter appends to those of the state: inpainting, super-resolution, image editing."""

DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"
"""Residuals of a ControlNet, under the names of diffusers' arguments; of the first there are several, numbered from 0."""

INTRABLOCK = "down_intrablock_additional_residuals"
"""Features of a T2I adapter, numbered from 0."""


@dataclass(frozen=True)
class ConditionInput:
    """One input of a network besides the state and the timestep.

    Attributes:
        name: name of the graph input.
        dtype: int64 for labels, else float32.
        shape: shape of one sample, without the batch. A name stands for a size that the plan's table decides.
        labels: number of labels that the network knows; None if the input is not a label.
        null_class: label that means "no class", for guidance; None if the model does not say which one does.
    """

    name: str
    dtype: Literal["int64", "float32"]
    shape: tuple[int | str, ...]
    labels: int | None = None
    null_class: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(['rows', *map(str, self.shape)])}]"

    def takes(self, table: NDArray[Any]) -> bool:
        """Return whether an array [rows, ...] can be the table of this input."""
        found = table.shape[1:]
        sizes = len(found) == len(self.shape) and all(
            isinstance(wanted, str) or wanted == n for wanted, n in zip(self.shape, found, strict=True)
        )
        known = self.labels is None or bool(((table >= 0) & (table < self.labels)).all())
        return table.dtype == np.dtype(self.dtype) and sizes and known


def class_input(labels: int, null_class: int | None = None) -> ConditionInput:
    """Return the input for a class label out of `labels`. They include `null_class`, the label for "no class", if there is one."""
    return ConditionInput(LABELS, "int64", (), labels, null_class)


def image_input(channels: int, height: int, width: int) -> ConditionInput:
    """Return the input for an image that is concatenated to the state."""
    return ConditionInput(IMAGE, "float32", (channels, height, width))


def conditioning_of(
    inputs: tuple[ConditionInput, ...], null_class: int | None, table: Path | None
) -> tuple[Conditioning | None, int | None]:
    """Return the table of the declared inputs, and its label that means "no class".

    Args:
        inputs: declared inputs, in the order in which the adapter takes them. A single label needs no table: row n is then class n.
        null_class: label that means "no class"; None takes the one that the model declares, if it declares one.
        table: path of an .npz file, see `engines.networks.conditioning.load_table`.

    Raises:
        UsageError: the plan names values that the network does not take, or lacks values that it takes.
    """
    if len(inputs) == 1 and inputs[0].labels is not None:
        _refuse_table(table)
        return _classes(inputs[0].name, inputs[0].labels, inputs[0].null_class if null_class is None else null_class)
    if null_class is not None:
        nulls = ", ".join(f"null.{one.name}" for one in inputs)
        mend = f"give {nulls} in model.conditions instead" if inputs else "leave model.null_class out of the plan"
        raise UsageError("The model has no classes.", found="model.null_class", mend=mend)
    if not inputs:
        _refuse_table(table)
        return None, None
    return _of_table(inputs, table), None


def _refuse_table(table: Path | None) -> None:
    if table is not None:
        raise UsageError("The model takes no embeddings.", found="model.conditions", mend="leave model.conditions out of the plan")


def _classes(name: str, labels: int, null: int | None) -> tuple[Conditioning, int | None]:
    if null is not None and not 0 <= null < labels:
        raise UsageError("The null class is not a label of the model.", found=f"model.null_class = {null}", expected=f"0..{labels - 1}")
    return class_labels(labels - 1 if null == labels - 1 else labels, null, name), null


def _of_table(inputs: tuple[ConditionInput, ...], table: Path | None) -> Conditioning:
    if table is None:
        raise UsageError(
            "The model takes embeddings, but the plan names none.",
            found="no model.conditions",
            expected=_expected(inputs),
            mend="name a file of embeddings as model.conditions, or list prompts as model.prompts if the pipeline has text encoders",
        )
    return fitted(inputs, load_table(table), str(table))


def fitted(inputs: tuple[ConditionInput, ...], conditioning: Conditioning, source: str) -> Conditioning:
    """Return the table with its inputs in the order in which the adapter takes them.

    Raises:
        UsageError: the table does not contain what the network takes.
    """
    if conditioning.tables.keys() != {one.name for one in inputs} or not all(one.takes(conditioning.tables[one.name]) for one in inputs):
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in conditioning.tables.items())
        raise UsageError("The conditioning does not fit the model.", found=f"{source}: {shapes}", expected=_expected(inputs))
    _check_named_sizes(inputs, conditioning, source)
    nulls = conditioning.null
    taken = [one for one in inputs if nulls is not None and one.name in nulls]
    return Conditioning(_in_order(inputs, conditioning.tables), None if nulls is None else _in_order(taken, nulls))


def guidance_values(inputs: Sequence[ConditionInput], guidance: float) -> dict[str, float | tuple[float, ...]]:
    """Return the values of the inputs that stand for a guidance scale, by name."""
    widths = {one.name: one.shape for one in inputs}
    found: dict[str, float | tuple[float, ...]] = {GUIDANCE: guidance} if GUIDANCE in widths else {}
    if TIMESTEP_COND in widths:
        (width,) = widths[TIMESTEP_COND]
        found[TIMESTEP_COND] = tuple(embedded_guidance(guidance, int(width)).tolist())
    return found


def with_fixed(conditioning: Conditioning, fixed: Mapping[str, FixedValue], null_fixed: Mapping[str, FixedValue]) -> Conditioning:
    """Return conditions with other values of the inputs that no prompt changes.

    Args:
        conditioning: conditions of prompts.
        fixed: values by input.
        null_fixed: those that differ for the negative prompt.
    """
    rows = {name: np.tile(np.asarray(value, dtype=np.float32), (conditioning.rows, 1)) for name, value in fixed.items()}
    tables = {name: rows[name].reshape(table.shape) if name in rows else table for name, table in conditioning.tables.items()}
    if conditioning.null is None:
        return Conditioning(tables, None)
    changed = {name: np.asarray(value, dtype=np.float32) for name, value in {**fixed, **null_fixed}.items()}
    return Conditioning(tables, {name: changed.get(name, value) for name, value in conditioning.null.items()})


def embedded_guidance(guidance: float, width: int) -> Float32:
    """Return the embedding [width] of a guidance scale w: sines and cosines of `1000 (w - 1)` at wave lengths that rise to 10,000.

    From LCM (Luo et al. 2023, arXiv 2310.04378). Angles are so large that float32 leaves them four digits, so they are computed as
    diffusers does, to the last bit: pipelines give the network the same embedding.
    """
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angle = torch.tensor(guidance - 1) * 1000.0 * frequency
    return np.pad(torch.cat([torch.sin(angle), torch.cos(angle)]).numpy(), (0, width % 2))


def guidance_of(embedded: Float32) -> float:
    """Return the guidance scale w of an embedding [width], for w up to 32: the longest wave turns by `0.1 (w - 1)`."""
    half = len(embedded) // 2
    return 1 + 10 * float(np.arctan2(embedded[half - 1], embedded[2 * half - 1]))


def with_guidance(inputs: tuple[ConditionInput, ...], conditioning: Conditioning, guidance: float) -> Conditioning:
    """Return the table with the guidance scale in every row, and its inputs in the order in which the adapter takes them."""
    values = {name: np.asarray(value, dtype=np.float32) for name, value in guidance_values(inputs, guidance).items()}
    tables = {**conditioning.tables, **{name: np.stack([value] * conditioning.rows) for name, value in values.items()}}
    null = None if conditioning.null is None else _in_order(inputs, {**conditioning.null, **values})
    return Conditioning(_in_order(inputs, tables), null)


def _expected(inputs: tuple[ConditionInput, ...]) -> str:
    return f"an .npz with {', '.join(map(str, inputs))}"


def _check_named_sizes(inputs: tuple[ConditionInput, ...], conditioning: Conditioning, source: str) -> None:
    """Refuse a table in which a size that several inputs share differs between them, such as the tokens of embeddings and of their mask."""
    sizes: dict[str, dict[str, int]] = {}
    for one in inputs:
        for axis, size in enumerate(one.shape):
            if isinstance(size, str):
                sizes.setdefault(size, {})[one.name] = conditioning.tables[one.name].shape[1 + axis]
    for size, found in sizes.items():
        if len(set(found.values())) > 1:
            raise UsageError(
                f"The inputs of the conditioning have different numbers of {size}.",
                found=f"{source}: " + ", ".join(f"{name} {number}" for name, number in found.items()),
                expected=_expected(inputs),
            )


def _in_order(inputs: Sequence[ConditionInput], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {one.name: arrays[one.name] for one in inputs}
