"""Learns the weights of one block so that the block's output changes least (BRECQ: Li et al. 2021, arXiv 2102.05426)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from calib.quantizers.oracle import fake_quantize
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.rounding.adaround import annealed_beta
from calib.rounding.block_rows import BlockRows
from calib.rounding.learned_scale import LearnedScale
from calib.rounding.soft_block import SoftBlock
from calib.rounding.soft_weight import Soften

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
        layers: the block's layers, as learned so far; rounded to nearest at first.
        weights: what was rounded, float32, by the names of the layers; the full-precision weights at first.
        frozen: tensors whose quantizers other blocks have learned.
        rows: inputs of the block and the outputs that it should produce.
    """

    module: nn.Module
    layers: InnerLayers
    weights: Mapping[str, Tensor]
    frozen: Collection[str]
    rows: BlockRows

    @classmethod
    def of(cls, module: nn.Module, layers: InnerLayers, frozen: Collection[str], rows: BlockRows) -> Self:
        """Return the task of a block of which nothing is learned yet."""
        weights = {name: layer.quantized_part(module.get_submodule(name).get_parameter("weight")) for name, layer in layers.items()}
        return cls(module, layers, weights, frozen, rows)

    def error(self, samples: NDArray[np.int64], settings: BlockFitSettings) -> float:
        """Mean squared error of the block's output, in the arithmetic of the oracle."""
        quantized = copy.deepcopy(self.module)
        for name, layer in self.layers.items():
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
    soften: Soften,
    samples: NDArray[np.int64],
    scale: float,
    settings: BlockFitSettings,
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> BlockTask:
    """Learn the weights of a block, and its activation scales.

    Args:
        task: the block.
        soften: makes its weights soft.
        samples: rows to learn from.
        scale: unit of the objective, the error of rounding to nearest, so that the constants above suit any block.
        settings: see `BlockFitSettings`.
        generator: CPU generator that draws the batches.
        on_step: called after every optimizer step.

    Returns:
        the task with the layers that were learned.
    """
    soft = SoftBlock(task.module, task.layers, task.weights, soften, settings.device)
    optimizer, rates = _optimizer(soft, task.frozen, settings)
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
    return replace(task, layers=soft.hardened(), weights=soft.unrounded())


def _optimizer(
    soft: SoftBlock, frozen: Collection[str], settings: BlockFitSettings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer of a block, and the decay of its rates."""
    learned = {tensor: scale for tensor, scale in soft.scales.items() if isinstance(scale, LearnedScale)}
    steps = [scale.a for tensor, scale in learned.items() if settings.activation_scales and tensor not in frozen]
    weights = [({"params": list(weight.parameters()), "lr": weight.rate}, weight.decays) for weight in soft.weights.values()]
    groups, decays = zip(*weights, ({"params": steps, "lr": SCALE_RATE}, True), strict=True)
    optimizer = torch.optim.Adam(list(groups))

    def decayed(iteration: int) -> float:
        return 1 - iteration / settings.iterations

    factors: list[Callable[[int], float]] = [decayed if one else _constant for one in decays]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _constant(_iteration: int) -> float:
    return 1.0
