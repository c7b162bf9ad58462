"""Counts the multiply-accumulates of a network with torch while it runs one sample."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptqd_export.models.base import LoadedModel


def count_macs(model: LoadedModel) -> dict[str, int]:
    """Return the multiply-accumulates per sample by module name. The empty name is the whole network, including attention products."""
    inputs = tuple(value[:1] for value in model.example_inputs(2))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.adapter(*inputs)
    prefix = f"{type(model.adapter).__name__}.network"
    counts: dict[str, Any] = counter.get_flop_counts()
    return {name.removeprefix(prefix).removeprefix("."): sum(ops.values()) // 2 for name, ops in counts.items() if name.startswith(prefix)}
