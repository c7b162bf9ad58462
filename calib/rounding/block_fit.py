"""Learns the rounding of one block so that the block's output changes least (BRECQ: Li et al. 2021, arXiv 2102.05426)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from calib.quantizers.oracle import fake_quantize
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.rounding.adaround import annealed_beta
from calib.rounding.block_rows import BlockRows
from calib.rounding.soft_block import SoftBlock

ROUNDING_RATE = 0.3
"""Adam's learning rate for `V`."""
SCALE_RATE = 1e-3
"""Adam's initial learning rate for the logarithm of an activation scale. It decays to 0, or the scales would never settle."""
DECISION_WEIGHT = 100.0
"""Weight of the regulariser, whose mean over the weights is in [0, 1], relative to an error of 1 for rounding to nearest."""

InnerLayers: TypeAlias = Mapping[str, QuantizedLayer]
"""Layers of a block by their names within the block; "" if the block is the layer."""


@dataclass(frozen=True)
class BlockFitSettings:
    """How a block is learned.

    Attributes:
        iterations: number of optimizer steps.
        batch_size: samples per step.
        activation_scales: whether activation scales are learned too.
        device: device of the networks.
    """

    iterations: int
    batch_size: int
    activation_scales: bool
    device: torch.device


@dataclass(frozen=True, eq=False)
class BlockTask:
    """What a fit learns.

    Attributes:
        module: the block in full precision; not modified.
        layers: the block's layers, rounded to nearest.
        frozen: tensors whose quantizers other blocks have learned.
        rows: inputs of the block and the outputs that it should produce.
    """

    module: nn.Module
    layers: InnerLayers
    frozen: Collection[str]
    rows: BlockRows

    def error(self, layers: InnerLayers, samples: NDArray[np.int64], settings: BlockFitSettings) -> float:
        """Mean squared error of the block's output with the given layers, in the arithmetic of the oracle."""
        quantized = copy.deepcopy(self.module)
        for name, layer in layers.items():
            fake_quantize(quantized.get_submodule(name), layer, torch.float32)
        total = 0.0
        for part in np.array_split(samples, -(-len(samples) // settings.batch_size)):
            args, kwargs = self.rows.arguments.take(part, settings.device)
            with torch.no_grad():
                out: Tensor = quantized(*args, **kwargs)
            total += float(mse_loss(out.float().cpu(), torch.from_numpy(self.rows.target[part]))) * len(part)
        return total / len(samples)


def fit(
    task: BlockTask,
    samples: NDArray[np.int64],
    scale: float,
    settings: BlockFitSettings,
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, QuantizedLayer]:
    """Learn whether the weights of a block are rounded up or down, and its activation scales.

    Args:
        task: the block.
        samples: rows to learn from.
        scale: unit of the objective, the error of rounding to nearest, so that the constants above suit any block.
        settings: see `FitSettings`.
        generator: CPU generator that draws the batches.
        on_step: called after every optimizer step.
    """
    soft = SoftBlock(task.module, task.layers, settings.device)
    steps = [step.a for tensor, step in soft.scales.items() if settings.activation_scales and tensor not in task.frozen]
    groups = [{"params": [rounding.V for rounding in soft.roundings.values()], "lr": ROUNDING_RATE}, {"params": steps, "lr": SCALE_RATE}]
    optimizer = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda iteration: 1 - iteration / settings.iterations])
    with soft.attached():
        for iteration in range(settings.iterations):
            drawn = samples[torch.randint(len(samples), (settings.batch_size,), generator=generator).numpy()]
            target = torch.from_numpy(task.rows.target[drawn]).to(settings.device)
            loss = mse_loss(soft(task.rows.arguments.take(drawn, settings.device)).float(), target) / scale
            beta = annealed_beta(iteration / settings.iterations)
            if beta is not None:
                loss = loss + DECISION_WEIGHT * soft.undecided(beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            on_step()
    return soft.hardened()
