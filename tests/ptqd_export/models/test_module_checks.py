"""Checks of loaded modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engines.errors import PtqdError
from ptqd_export.models.base import DecoderModule
from ptqd_export.models.module_checks import check_finite, check_images

INFINITY = float("inf")


def with_buffer(values: Tensor) -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("values", values)
    return module


@pytest.mark.parametrize(
    "values",
    [torch.tensor([0, -INFINITY]), torch.full((2, 2), -INFINITY), torch.empty(0), torch.arange(3), torch.tensor([3e38, -3e38, 1e-45])],
)
def test_masks_empty_and_large_values_are_no_damage(values: Tensor) -> None:
    check_finite(with_buffer(values), "x")


@pytest.mark.parametrize("values", [[0, INFINITY], [1, -INFINITY], [float("nan"), 1]])
def test_first_damaged_tensor_is_named(values: list[float]) -> None:
    with pytest.raises(PtqdError, match=r"found:    the part: values, 1 of 2 values\n(.*\n)*  mend:     copy the model again"):
        check_finite(with_buffer(torch.tensor(values)), "the part")


def test_lora_is_suspected_first() -> None:
    with pytest.raises(PtqdError, match=r"mend:     build without the LoRA a.safetensors, or with a smaller scale"):
        check_finite(with_buffer(torch.tensor([INFINITY])), "x", Path("a.safetensors"))


class Wide(DecoderModule):
    """Would need more memory than there is, if it computed anything."""

    def forward(self, states: Tensor) -> Tensor:
        return states[:, :3].repeat_interleave(2**15, -1).repeat_interleave(2**15, -2)


def test_images_are_never_computed() -> None:
    check_images(Wide(), (4, 16, 16), None)
