"""What keys and values of a prompt cost, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from ptqd_export.models.conditions import EMBEDDINGS
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter
from tools.studies.prompt_layers import HEADER, PromptLayers, prompt_layers, row

TOKENS, DIM, CHANNELS, BLOCKS = 5, 12, 16, 3
"""One block of attention down, and two up."""


def test_keys_and_values_are_counted_and_nothing_else() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(CHANNELS,), norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), mid_block_type=None, attention_head_dim=8,
            cross_attention_dim=DIM,
        )  # fmt: skip
    found = prompt_layers(DiffusersAdapter(network, (EMBEDDINGS,)), (2, 8, 8), {EMBEDDINGS: (TOKENS, DIM)})
    assert (found.layers, found.weights) == (2 * BLOCKS, 2 * BLOCKS * DIM * CHANNELS)
    assert (found.macs, found.values) == (TOKENS * found.weights, 2 * BLOCKS * TOKENS * CHANNELS)
    assert found.weights_share == pytest.approx(found.weights / sum(one.numel() for one in network.parameters()))
    assert 0 < found.macs_share < 0.1


def test_row_has_a_cell_for_every_column() -> None:
    cells = row("a", PromptLayers(32, 1_500_000_000, 0.0037, 19_000_000, 0.022, 1_900_000))
    assert cells == ("a", "32", "1.5 G", "0.37%", "19 M", "2.2%", "1.9 M")
    assert len(cells) == len(HEADER)
