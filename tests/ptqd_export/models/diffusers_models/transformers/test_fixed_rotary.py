"""Rotary embeddings at fixed positions, against those that diffusers computes from the positions of its pipeline."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from ptqd_export.models.diffusers_models.transformers.fixed_rotary import FixedRotary, grid_positions


def test_angles_are_those_of_the_pipeline() -> None:
    text, dims = 7, (4, 6, 8)
    image = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    expected = FluxPosEmbed(10000, list(dims))(torch.cat([torch.zeros(text, 3), image]))
    found = FixedRotary(grid_positions((3, 5), 3), dims, 10000)(torch.zeros(text + 15, 3))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_positions_of_a_grid_are_row_by_row_on_the_last_axes() -> None:
    assert grid_positions((2, 2), 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
