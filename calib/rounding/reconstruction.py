"""Learns the rounding of a network block by block, in the order in which they run. An interruption loses at most the current block."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
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
from calib.rounding.soft_weight import Phase

HELD_OUT = 8
"""One state in this many is held out. The held-out states decide whether the learned rounding is used."""

Unit = Literal["layer", "block"]


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a network is reconstructed.

    Attributes:
        unit: what is learned together.
        phases: what is learned of every unit, one after the other.
        fit: settings for learning one unit.
        dtype: type of matrix products and convolutions during learning; everything else is float32.
        memory_bytes: most memory for stored inputs and outputs; the rest is stored in files.
    """

    unit: Unit
    phases: tuple[Phase, ...]
    fit: BlockFitSettings
    dtype: torch.dtype
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """Calibration data that the network is run on.

    Attributes:
        forward: runs a batch through a network: the original or a copy.
        inputs: on the CPU, one row per guidance branch and state: all states of the first branch, then all of the second.
        states: number of states.
    """

    forward: Forward
    inputs: Inputs
    states: int

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows to learn from, and the held-out rows: all branches of every eighth state. A single state serves as both."""
        rows = np.arange(len(self.inputs[0]), dtype=np.int64)
        held_out = rows % self.states % HELD_OUT == min(HELD_OUT, self.states) - 1
        return (rows, rows) if held_out.all() else (rows[~held_out], rows[held_out])


def reconstruct(
    network: nn.Module,
    layers: Sequence[QuantizedLayer],
    calibration: CalibrationRows,
    settings: ReconstructionSettings,
    folder: Path,
    on_work: Callable[[int, int], None],
) -> list[QuantizedLayer]:
    """Learn the rounding of inner and condition layers and, if the settings say so, the scales of their activations.

    Boundary and embedding layers, which have 8-bit weights and float activations, stay as they are. So do layers that a forward pass calls
    more than once. Layers that read the same tensor keep sharing one quantizer, learned by the first block that reads the tensor.

    Args:
        network: full-precision network in evaluation mode; not modified.
        layers: layers rounded to nearest.
        calibration: states to learn from.
        settings: see `ReconstructionSettings`.
        folder: stores every finished block as `block-<number>.npz`; blocks left there by an interrupted call are reused.
        on_work: called with the work done and all work: for every block, a piece for each batch that its inputs are collected from, and for
            each optimizer step.

    Returns:
        the layers in the same order, with each weight rounded up or down and the same weight scales.
    """
    nearest = {layer.layer.name: layer for layer in layers}
    blocks = _blocks(network, nearest, calibration, settings.unit)
    pieces = len(settings.phases) * settings.fit.iterations + math.ceil(len(calibration.inputs[0]) / settings.fit.batch_size)
    with RowStore(folder / "outputs", settings.memory_bytes // 2) as outputs:
        learner = _Learner(network, nearest, blocks, calibration, settings, outputs)
        for number in range(len(blocks)):
            done = partial(next, count(number * pieces + 1))
            path = folder / f"block-{number:04}.npz"
            if not path.exists():
                save_block(path, *learner.learn(number, folder / "rows", partial(_tell, on_work, done, len(blocks) * pieces)))
            learner.install(load_block(path, nearest)[1])
    return [learner.learned.get(name, layer) for name, layer in nearest.items()]


def _tell(on_work: Callable[[int, int], None], done: Callable[[], int], total: int) -> None:
    on_work(done(), total)


def block_files(folder: Path) -> list[Path]:
    """Paths of the finished blocks, in order."""
    return sorted(folder.glob("block-*.npz"))


def _blocks(network: nn.Module, nearest: Mapping[str, QuantizedLayer], calibration: CalibrationRows, unit: Unit) -> list[Block]:
    names = [name for name, layer in nearest.items() if layer.layer.role in ("inner", "condition")]
    calls = module_calls(network, candidates(network, names), calibration.forward, calibration.inputs)
    return single_layers(names, calls) if unit == "layer" else find_blocks(network, names, calls)


class _Learner:
    """Holds the full-precision network, and a copy quantized up to the current block.

    Attributes:
        learned: layers of all finished blocks, by name.
    """

    def __init__(
        self,
        network: nn.Module,
        nearest: Mapping[str, QuantizedLayer],
        blocks: Sequence[Block],
        calibration: CalibrationRows,
        settings: ReconstructionSettings,
        outputs: RowStore,
    ) -> None:
        device = settings.fit.device
        learning = {name for block in blocks for name in block.layers}
        others = [layer for name, layer in nearest.items() if name not in learning]
        reference = network if device.type == "cpu" else nn.Module.to(sharing_copy(network), device)
        quantized = fake_quantized(network, others).requires_grad_(False)
        quantized = nn.Module.to(quantized, device)
        self._networks = BlockNetworks.of(reference, quantized, calibration.forward, blocks, calibration.inputs, outputs)
        self._blocks = blocks
        self._outputs = outputs
        self._nearest = nearest
        self._calibration = calibration
        self._settings = settings
        self._quantizers: dict[str, ActivationQuantizer] = {}
        self.learned: dict[str, QuantizedLayer] = {}

    def learn(self, number: int, rows_folder: Path, on_piece: Callable[[], None]) -> tuple[BlockRecord, list[QuantizedLayer]]:
        """Learn one block with its own generator, so that the result does not depend on which call learned the blocks before it."""
        begin = time.monotonic()
        fit_settings, calibration, block = self._settings.fit, self._calibration, self._blocks[number]
        module = self._networks.quantized.get_submodule(block.name)
        before = {_within(name, block): with_activations(self._nearest[name], self._quantizers) for name in block.layers}
        chosen, held_out = calibration.split()
        generator = torch.Generator().manual_seed(number)
        with RowStore(rows_folder, self._settings.memory_bytes - self._outputs.in_memory) as store, self._products():
            blocks = self._blocks[: number + 1]
            rows = collect(blocks, self._networks, calibration.inputs, fit_settings.batch_size, fit_settings.device, store, on_piece)
            task = BlockTask.of(module, before, self._quantizers, rows)
            errors, kept = [task.error(held_out, fit_settings)], list[str]()
            for phase in self._settings.phases if errors[0] > 0 else ():
                learned = fit(task, phase.soften, chosen, errors[0], fit_settings, generator, on_piece)
                error = learned.error(held_out, fit_settings)
                if error < min(errors):
                    task = learned
                    kept.append(phase.name)
                errors.append(error)
        seconds = time.monotonic() - begin
        stored = store.in_memory + self._outputs.in_memory, store.in_files + self._outputs.in_files
        record = BlockRecord(block.name, block.layers, errors[0], min(errors[1:], default=errors[0]), tuple(kept), seconds, *stored)
        return record, list(task.layers.values())

    def install(self, layers: Sequence[QuantizedLayer]) -> None:
        """Put the layers of one more block into the quantized network."""
        for layer in layers:
            self.learned[layer.layer.name] = layer
            self._quantizers |= activations(layer)
            fake_quantize(self._networks.quantized.get_submodule(layer.layer.name), layer, torch.float32)

    def _products(self) -> torch.autocast:
        dtype = self._settings.dtype
        return torch.autocast(self._settings.fit.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _within(name: str, block: Block) -> str:
    """Name of a layer within its block; "" if the layer is the block."""
    return name.removeprefix(block.name).removeprefix(".")
