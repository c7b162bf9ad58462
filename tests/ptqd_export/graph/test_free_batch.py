"""A network whose code fixes the batch is refused, with the line that does it; a batch that is read as a size stays free."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engines.errors import UsageError
from ptqd_export.graph.trace import trace_module


class Reshaped(nn.Module):
    """Adds an embedding of the timestep, which it reshapes by the batch, as many hand-written U-Nets do."""

    def __init__(self, batch: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.time, self.conv = nn.Linear(1, 2), nn.Conv2d(2, 2, 1)
        self.batch = batch

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        n = self.batch(sample)
        return self.conv(sample) + self.time(timestep[:, None]).reshape(n, -1, 1, 1)  # type: ignore[no-any-return]  # of torch


INPUTS = {"sample": torch.ones(2, 2, 4, 4), "timestep": torch.ones(2)}


@pytest.mark.parametrize("batch", [len, lambda x: int(x.shape[0])], ids=["len", "int"])
def test_fixed_batch_is_refused_with_its_line(batch: Callable[[Tensor], int]) -> None:
    with pytest.raises(UsageError, match=r"(?s)fixes the batch.*found: +test_free_batch\.py:\d+ in .*mend: +read the batch as x\.shape"):
        trace_module(Reshaped(batch), INPUTS)


def test_batch_that_is_read_as_a_size_stays_free() -> None:
    for value in trace_module(Reshaped(lambda x: x.shape[0]), INPUTS).graph.inputs:
        assert value.shape is not None
        assert not isinstance(value.shape[0], int)
