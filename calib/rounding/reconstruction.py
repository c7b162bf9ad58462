"""Learned rounding of a network, block by block in the order in which it runs; an interruption costs the current block at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calib.quantizers.oracle import fake_quantize, fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.sharing_copy import sharing_copy
from calib.rounding.block_fit import BlockFitSettings, BlockTask, fit
from calib.rounding.block_rows import BlockNetworks, collect
from calib.rounding.blocks import Block, candidates, find_blocks, single_layers
from calib.rounding.learned_block import BlockRecord, load_block, save_block
from calib.rounding.module_calls import Forward, Inputs, module_calls
from calib.rounding.row_store import RowStore
from calib.rounding.soft_block import activations, with_activations

HELD_OUT = 8
"""One state in so many is not learned from, and decides whether what was learned is used."""

Unit = Literal["layer", "block"]


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a network is reconstructed.

    Attributes:
        unit: what is learned together.
        fit: of one unit.
        dtype: of matrix products and convolutions meanwhile; all else is float32.
        memory_bytes: most memory for stored inputs and outputs; what exceeds it lies in files.
    """

    unit: Unit
    fit: BlockFitSettings
    dtype: torch.dtype
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """What the network is run on.

    Attributes:
        forward: runs the network, or a copy of it, on a batch.
        inputs: on the CPU, one row for each branch of guidance and state: all states of the first branch, then all of the second.
        states: how many there are.
    """

    forward: Forward
    inputs: Inputs
    states: int

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to learn from, and rows held out: all branches of every eighth state. A single state serves as both."""
        rows = np.arange(len(self.inputs[0]), dtype=np.int64)
        held_out = rows % self.states % HELD_OUT == min(HELD_OUT, self.states) - 1
        return (rows, rows) if held_out.all() else (rows[~held_out], rows[held_out])


def reconstruct(
    network: nn.Module,
    layers: Sequence[QuantizedLayer],
    calibration: CalibrationRows,
    settings: ReconstructionSettings,
    folder: Path,
    on_block: Callable[[int, int], None],
) -> list[QuantizedLayer]:
    """Learns the rounding of the inner layers, and the scales of their activations where the settings say so.

    Boundary and embedding layers, whose weights have 8 bits and whose activations are float, stay as they are, and so do layers that a
    forward pass calls more than once. Layers that read the same tensor keep sharing one quantizer: the first block that reads it learns it.

    Args:
        network: in full precision and in evaluation mode; left as it is.
        layers: rounded to the nearest.
        calibration: states to learn from.
        settings: see there.
        folder: keeps every finished block as `block-<number>.npz`; blocks that an interrupted call left there are taken as they are.
        on_block: is told the finished blocks, and all.

    Returns:
        the layers in the same order, each weight rounded up or down, with the same weight scales.
    """
    nearest = {layer.layer.name: layer for layer in layers}
    blocks = _blocks(network, nearest, calibration, settings.unit)
    learner = _Learner(network, nearest, blocks, calibration, settings)
    for number, block in enumerate(blocks):
        on_block(number, len(blocks))
        path = folder / f"block-{number:04}.npz"
        if not path.exists():
            save_block(path, *learner.learn(number, block, folder / "rows"))
        learner.install(load_block(path, nearest)[1])
    return [learner.learned.get(name, layer) for name, layer in nearest.items()]


def block_files(folder: Path) -> list[Path]:
    """The finished blocks, in their order."""
    return sorted(folder.glob("block-*.npz"))


def _blocks(network: nn.Module, nearest: Mapping[str, QuantizedLayer], calibration: CalibrationRows, unit: Unit) -> list[Block]:
    names = [name for name, layer in nearest.items() if layer.layer.role == "inner"]
    calls = module_calls(network, candidates(network, names), calibration.forward, calibration.inputs)
    return single_layers(names, calls) if unit == "layer" else find_blocks(network, names, calls)


class _Learner:
    """The networks between two blocks: full precision, and quantized up to here.

    Attributes:
        learned: the layers of all blocks so far, by name.
    """

    def __init__(
        self,
        network: nn.Module,
        nearest: Mapping[str, QuantizedLayer],
        blocks: Sequence[Block],
        calibration: CalibrationRows,
        settings: ReconstructionSettings,
    ) -> None:
        device = settings.fit.device
        learning = {name for block in blocks for name in block.layers}
        others = [layer for name, layer in nearest.items() if name not in learning]
        reference = network if device.type == "cpu" else nn.Module.to(sharing_copy(network), device)
        quantized = fake_quantized(network, others).requires_grad_(False)
        self._networks = BlockNetworks(reference, nn.Module.to(quantized, device), calibration.forward)
        self._nearest = nearest
        self._calibration = calibration
        self._settings = settings
        self._quantizers: dict[str, ActivationQuantizer] = {}
        self.learned: dict[str, QuantizedLayer] = {}

    def learn(self, number: int, block: Block, rows_folder: Path) -> tuple[BlockRecord, list[QuantizedLayer]]:
        """One block, of its own generator: what comes out does not depend on which call learned the blocks before it."""
        begin = time.monotonic()
        fit_settings, calibration = self._settings.fit, self._calibration
        module = self._networks.quantized.get_submodule(block.name)
        before = {_within(name, block): with_activations(self._nearest[name], self._quantizers) for name in block.layers}
        chosen, held_out = calibration.split()
        generator = torch.Generator().manual_seed(number)
        with RowStore(rows_folder, self._settings.memory_bytes) as store, self._products():
            rows = collect(block, self._networks, calibration.inputs, fit_settings.batch_size, fit_settings.device, store)
            task = BlockTask(module, before, self._quantizers, rows)
            learned, learned_error = before, (nearest_error := task.error(before, held_out, fit_settings))
            if nearest_error > 0:
                learned = fit(task, chosen, nearest_error, fit_settings, generator)
                learned_error = task.error(learned, held_out, fit_settings)
        kept = learned_error < nearest_error
        seconds = time.monotonic() - begin
        record = BlockRecord(block.name, block.layers, nearest_error, learned_error, kept, seconds, store.in_memory, store.in_files)
        return record, list((learned if kept else before).values())

    def install(self, layers: Sequence[QuantizedLayer]) -> None:
        """The network quantized so far gets one more block."""
        for layer in layers:
            self.learned[layer.layer.name] = layer
            self._quantizers |= activations(layer)
            fake_quantize(self._networks.quantized.get_submodule(layer.layer.name), layer, torch.float32)

    def _products(self) -> torch.autocast:
        dtype = self._settings.dtype
        return torch.autocast(self._settings.fit.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _within(name: str, block: Block) -> str:
    """Name of a layer within its block; "" where it is the block."""
    return name.removeprefix(block.name).removeprefix(".")
