"""Finds scales by least mean squared error (`mse`) or by the largest magnitude (`max`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from calib.quantizers.floats.nvfp4 import BLOCK, LARGEST, Nvfp4WeightQuantizer, e2m1, global_scale_of, storable
from calib.quantizers.outputs.output_error import ReadingLayer, RowsOfGroup, error_at_readers
from calib.quantizers.quantizers import SMALLEST_SCALE, ActivationQuantizer, WeightQuantizer, weight_range

Criterion = Literal["mse", "max"]

_CHUNK_VALUES = 2**15
"""Values searched at a time. This many stay in cache."""


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread. Its thread pool would synchronize after each of the many small operations: while another process occupies
    one of its cores, rounding a chunk takes milliseconds instead of microseconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def weight_scale(
    weight: Tensor, bits: int, criterion: Criterion = "mse", rows: Tensor | None = None, candidates: int = 80, group: int | None = None
) -> WeightQuantizer:
    """Return the symmetric quantizer of a weight [channels, ...].

    `mse` tries the channel's largest magnitude and `candidates` clipping ratios between 0.25 and 1.05. It works in chunks of
    channels, so memory does not grow with the layer.

    Args:
        weight: the weight.
        bits: bit width of the integers.
        criterion: `mse` looks for the least squared error, `max` keeps the largest magnitude.
        rows: sampled rows of the layer's input, float32 [count, groups, inputs]; see `calib.quantizers.outputs.input_rows`. `mse` then
            minimizes the error of the layer's output; without rows, that of the weight.
        candidates: number of clipping ratios.
        group: number of neighbouring inputs of a linear layer that share a scale, a divisor of all of them; None finds one scale for each
            channel.
    """
    grid = _integer_grid(bits, candidates)
    flat = weight.detach().float().reshape(len(weight), -1)
    size = max(1, _CHUNK_VALUES // flat.shape[1])
    if group is not None:
        return WeightQuantizer(bits, _block_scales(flat, grid, criterion, rows, group))
    errors = [_weight_error] if rows is None else [RowsOfGroup(of_group).error for of_group in rows.unbind(1)]
    groups = zip(flat.chunk(len(errors)), errors, strict=True)
    chunks = [_channel_scales(chunk, grid, criterion, error) for group, error in groups for chunk in group.split(size)]
    return WeightQuantizer(bits, torch.cat(chunks))


def _weight_error(change: Tensor) -> Tensor:
    """[channels] squared error of the weights themselves."""
    return change.square().sum(dim=1)


@_one_thread()
def nvfp4_weight(weight: Tensor, criterion: Criterion = "mse", rows: Tensor | None = None, candidates: int = 40) -> Nvfp4WeightQuantizer:
    """Return the quantizer of a weight [channels, inputs] in blocks of 16 inputs. `mse` tries ratios between 0.6 and 1.6 of the scale that
    takes a block's largest value to 6, as `weight_scale` does for groups; at 1.5 that value becomes 4, and those beside it are finer.
    """
    flat = weight.detach().float()
    unit = global_scale_of(float(flat.abs().max()))
    ratios = (1.0, *torch.linspace(0.6, 1.6, candidates).tolist())
    grid = _Grid(LARGEST, e2m1, ratios, partial(storable, global_scale=unit))
    return Nvfp4WeightQuantizer(4, _block_scales(flat, grid, criterion, rows, BLOCK), unit)


@dataclass(frozen=True)
class _Grid:
    """The values that weights can have.

    Attributes:
        largest: largest value, in units of the scale.
        nearest: rounds to the nearest values, in units of the scale.
        ratios: scales to try, in units of the one that keeps the largest magnitude.
        storable: rounds a scale to one that can be stored.
    """

    largest: float
    nearest: Callable[[Tensor], Tensor]
    ratios: tuple[float, ...]
    storable: Callable[[Tensor], Tensor]

    def change(self, flat: Tensor, scale: Tensor) -> Tensor:
        """What rounding to these scales, [channels], adds to weights [channels, inputs]."""
        return self.nearest(flat / scale[:, None]).mul_(scale[:, None]).sub_(flat)


def _integer_grid(bits: int, candidates: int) -> _Grid:
    low, high = weight_range(bits)
    ratios = (1.0, *torch.linspace(0.25, 1.05, candidates).tolist())
    return _Grid(high, lambda x: torch.round(x).clamp_(low, high), ratios, lambda scale: scale)


def _block_scales(flat: Tensor, grid: _Grid, criterion: Criterion, rows: Tensor | None, size: int) -> Tensor:
    """[channels, blocks] scales of blocks of inputs, found for a chunk of channels at a time."""
    seen = None if rows is None or criterion == "max" else RowsOfGroup(rows[:, 0])
    chunks = flat.split(max(1, _CHUNK_VALUES // flat.shape[1]))
    return torch.cat([_scales_of_blocks(chunk, grid, criterion, seen, size) for chunk in chunks])


def _scales_of_blocks(flat: Tensor, grid: _Grid, criterion: Criterion, rows: RowsOfGroup | None, size: int) -> Tensor:
    """[channels, blocks] scales of blocks of inputs.

    With rows, the blocks of a channel start from the channel's own scale and are searched one after the other, each for the least error of
    the output beside the errors of all others: correlated inputs add them up. So the error never exceeds that of one scale for the channel.
    """
    parts = flat.split(size, dim=1)
    if rows is None:
        return torch.stack([_channel_scales(part, grid, criterion, _weight_error) for part in parts], dim=1)
    whole = _channel_scales(flat, grid, criterion, rows.error)
    changes = [grid.change(part, whole) for part in parts]
    seen = [RowsOfGroup(own) for own in rows.rows.split(size, dim=1)]
    outputs = torch.cat(changes, dim=1) @ rows.rows.T
    scales = []
    for part, change, own in zip(parts, changes, seen, strict=True):
        beside = outputs - change @ own.rows.T
        found = _channel_scales(part, grid, criterion, partial(own.error, beside=beside), whole)
        outputs = beside + grid.change(part, found) @ own.rows.T
        scales.append(found)
    return torch.stack(scales, dim=1)


def _channel_scales(
    flat: Tensor, grid: _Grid, criterion: Criterion, error_of: Callable[[Tensor], Tensor], start: Tensor | None = None
) -> Tensor:
    """[channels] scales of rows of weights; `start` [channels] are candidates too."""
    largest = (flat.abs().amax(dim=1) / grid.largest).clamp_min(SMALLEST_SCALE)
    if criterion == "max":
        return grid.storable(largest)
    best = torch.full_like(largest, torch.inf)
    chosen = largest.clone()
    tried = (grid.storable(ratio * largest) for ratio in grid.ratios)
    for scale in tried if start is None else (start, *tried):
        error = error_of(grid.change(flat, scale))
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
    return chosen


@_one_thread()
def activation_scale(
    values: Tensor,
    low: float,
    high: float,
    *,
    bits: int,
    signed: bool,
    symmetric: bool,
    criterion: Criterion = "mse",
    readers: Sequence[ReadingLayer] = (),
) -> ActivationQuantizer:
    """Return the per-tensor quantizer for sampled values.

    Args:
        values: a sample of the tensor's values, 1-D.
        low, high: smallest and largest value ever seen (the sample may have missed them).
        bits: bit width of the integers.
        signed: int8 range, otherwise uint8.
        symmetric: clip both ends alike; the zero point is then 0 if signed.
        criterion: `mse` searches the clipping of both ends by coordinate descent on a grid for the least squared error, where clipping
            errors are weighted by `clipping_weight`; `max` keeps the whole range.
        readers: layers that read the tensor. `mse` then minimizes the error of their outputs; without readers, that of the values.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if criterion == "max":
        return _quantizer(low, high, bits, signed, symmetric)
    error = cache(partial(_error, values, readers))  # every grid includes the current ends, and the first grids repeat one end many times
    ends = [1.0, 1.0]
    for radius in (0.8, 0.2, 0.05):
        for end in (0,) if symmetric else (0, 1):
            grid = [min(1.0, max(0.02, ends[end] + radius * (step / 10 - 1))) for step in range(21)]
            tried = [[*ends] for _ in grid]
            for pair, ratio in zip(tried, grid, strict=True):
                pair[end] = ratio
                if symmetric:
                    pair[1 - end] = ratio
            errors = [error(_quantizer(low * a, high * b, bits, signed, symmetric)) for a, b in tried]
            ends = tried[errors.index(min(errors))]
    return _quantizer(low * ends[0], high * ends[1], bits, signed, symmetric)


def clipping_weight(bits: int) -> float:
    """Weight of a squared clipping error relative to a squared rounding error, `2^(bits / 2)`.

    A value that is clipped at one step is clipped at the next too, so clipping errors add up along a chain, while rounding errors average
    out. The finer the scale, the closer rounding is to noise, and the less a wider range costs.
    """
    return math.sqrt(2**bits)


def _error(values: Tensor, readers: Sequence[ReadingLayer], quantizer: ActivationQuantizer) -> float:
    """Squared error, with clipping errors weighted by `clipping_weight`."""
    if readers:
        return error_at_readers(readers, quantizer, clipping_weight(quantizer.bits))
    low, high = ((end - quantizer.zero_point) * quantizer.scale for end in (quantizer.low, quantizer.high))
    extra = clipping_weight(quantizer.bits) - 1
    error = 0.0
    for part in values.split(_CHUNK_VALUES):
        error += float((quantizer.fake(part) - part).square().sum()) + extra * float((part - part.clamp(low, high)).square().sum())
    return error


def _quantizer(low: float, high: float, bits: int, signed: bool, symmetric: bool) -> ActivationQuantizer:
    levels = 2**bits - 1
    lowest = -(2 ** (bits - 1)) if signed else 0
    if symmetric:
        scale = _float32(max(high / (2 ** (bits - 1) - 1), SMALLEST_SCALE))
        return ActivationQuantizer(bits, signed, scale, 0 if signed else 2 ** (bits - 1))
    scale = _float32(max((high - low) / levels, SMALLEST_SCALE))
    zero_point = max(lowest, min(lowest + levels, round(lowest - low / scale)))
    return ActivationQuantizer(bits, signed, scale, zero_point)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
