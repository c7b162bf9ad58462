"""The decoder of a latent model's first stage: `AutoencoderKL` or `VQModel`, with the scaling of the latents folded in."""

from __future__ import annotations

from torch import Tensor, nn

from ptqd_export.models.diffusers_folder import DiffusersFolder

FIRST_STAGES = ("AutoencoderKL", "VQModel")


class FirstStageDecoder(nn.Module):
    """`decode(z / scaling_factor + shift_factor)`, as the pipelines of diffusers do: states [B, C, h, w] to images [B, 3, H, W].

    Args:
        first_stage: its encoder is dropped.
    """

    def __init__(self, first_stage: nn.Module) -> None:
        super().__init__()
        config = first_stage.config
        del first_stage.encoder, first_stage.quant_conv
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.scale = float(config.scaling_factor)  # type: ignore[union-attr, arg-type]
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def forward(self, states: Tensor) -> Tensor:
        images: Tensor = self.first_stage.decode(states / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]
        return images


def load_decoder(folder: DiffusersFolder) -> nn.Module | None:
    """The decoder of a pipeline; None where there is no first stage, and the states are images."""
    found = [name for name, kind in folder.parts.items() if kind in FIRST_STAGES]
    return FirstStageDecoder(folder.load(found[0])) if found else None
