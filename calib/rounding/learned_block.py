"""Saves what a block has learned to a file, and loads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from engines.host.files import replacing


@dataclass(frozen=True)
class BlockRecord:
    """How a block was learned.

    Attributes:
        name, layers: names of the block and of its layers.
        nearest_error, learned_error: mean squared error of the block's output on held-out samples, in the network quantized so far.
        kept: names of what was learned and is used: each only if it made the error smaller.
        seconds: time for the whole block, including collecting its rows.
        bytes_in_memory, bytes_in_files: size of the block's stored inputs and outputs.
    """

    name: str
    layers: tuple[str, ...]
    nearest_error: float
    learned_error: float
    kept: tuple[str, ...]
    seconds: float
    bytes_in_memory: int
    bytes_in_files: int


def save_block(path: Path, record: BlockRecord, layers: Iterable[QuantizedLayer]) -> None:
    """Write a complete .npz or nothing: `record`, and per layer `<name>.integers` (8-bit floats as their bytes), `<name>.input`,
    `<name>.output` (scales, float32)."""
    arrays: dict[str, NDArray[Any]] = {"record": np.array(json.dumps(asdict(record)))}
    for layer in layers:
        arrays[f"{layer.layer.name}.integers"] = _bytes(layer.integers).numpy()
        for side, quantizer in (("input", layer.input), ("output", layer.output)):
            if quantizer is not None:
                arrays[f"{layer.layer.name}.{side}"] = np.array(quantizer.scale, np.float32)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_block(path: Path, nearest: Mapping[str, QuantizedLayer]) -> tuple[BlockRecord, list[QuantizedLayer]]:
    """Read what `save_block` wrote. The layers' other properties come from `nearest`, the layers rounded to nearest."""
    with np.load(path) as archive:
        stored = json.loads(str(archive["record"]))
        record = BlockRecord(**{**stored, "layers": tuple(stored["layers"]), "kept": tuple(stored["kept"])})
        return record, [_learned(nearest[name], archive) for name in record.layers]


def _learned(layer: QuantizedLayer, archive: Mapping[str, NDArray[Any]]) -> QuantizedLayer:
    def scaled(side: str, quantizer: ActivationQuantizer | None) -> ActivationQuantizer | None:
        return None if quantizer is None else replace(quantizer, scale=float(archive[f"{layer.layer.name}.{side}"]))

    integers = torch.from_numpy(archive[f"{layer.layer.name}.integers"]).view(layer.integers.dtype)
    return replace(layer, integers=integers, input=scaled("input", layer.input), output=scaled("output", layer.output))


def _bytes(values: Tensor) -> Tensor:
    return values.view(torch.uint8) if values.is_floating_point() else values
