"""The DDPM U-Net of 36 million parameters that the tests of sizes and large builds use."""

from __future__ import annotations

import torch

from engines.samplers import NoiseSchedule
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter


def large_u_net() -> LoadedModel:
    """Return the U-Net with random weights that are always the same."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    model = LoadedModel("DDPM", DiffusersAdapter(network, ()), (3, 32, 32), None, None, NoiseSchedule())
    assert 35e6 < model.parameters < 37e6
    return model
