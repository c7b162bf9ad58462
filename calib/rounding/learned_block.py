"""What a block has learned, as a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from engines.host.files import replacing


@dataclass(frozen=True)
class BlockRecord:
    """How a block was learned.

    Attributes:
        name, layers: of the block.
        nearest_error, learned_error: mean squared error of its output on samples held out, in the network quantized so far.
        kept: what was learned is used; where it is worse than rounding to the nearest it is not.
        seconds: of the whole block, collecting included.
        bytes_in_memory, bytes_in_files: of its stored inputs and outputs.
    """

    name: str
    layers: tuple[str, ...]
    nearest_error: float
    learned_error: float
    kept: bool
    seconds: float
    bytes_in_memory: int
    bytes_in_files: int


def save_block(path: Path, record: BlockRecord, layers: Iterable[QuantizedLayer]) -> None:
    """Writes a whole .npz or nothing: `record`, and by layer `<name>.integers`, `<name>.input` and `<name>.output` (scales, float32)."""
    arrays: dict[str, NDArray[Any]] = {"record": np.array(json.dumps(asdict(record)))}
    for layer in layers:
        arrays[f"{layer.layer.name}.integers"] = layer.integers.numpy()
        for side, quantizer in (("input", layer.input), ("output", layer.output)):
            if quantizer is not None:
                arrays[f"{layer.layer.name}.{side}"] = np.array(quantizer.scale, np.float32)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_block(path: Path, nearest: Mapping[str, QuantizedLayer]) -> tuple[BlockRecord, list[QuantizedLayer]]:
    """What `save_block` wrote, for layers whose other properties are those of rounding to the nearest."""
    with np.load(path) as archive:
        stored = json.loads(str(archive["record"]))
        record = BlockRecord(**{**stored, "layers": tuple(stored["layers"])})
        return record, [_learned(nearest[name], archive) for name in record.layers]


def _learned(layer: QuantizedLayer, archive: Mapping[str, NDArray[Any]]) -> QuantizedLayer:
    def scaled(side: str, quantizer: ActivationQuantizer | None) -> ActivationQuantizer | None:
        return None if quantizer is None else replace(quantizer, scale=float(archive[f"{layer.layer.name}.{side}"]))

    integers = torch.from_numpy(archive[f"{layer.layer.name}.integers"])
    return replace(layer, integers=integers, input=scaled("input", layer.input), output=scaled("output", layer.output))
