"""The network: a PixArt transformer that attends to the output of a small T5 encoder, trained together, and its diffusers folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from tools.flow.words import LONGEST, every_prompt, tokenizer
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE
from tools.training.training import Predict

HERE = Path(__file__).parent
TEACHER, STUDENT = HERE / "model", HERE / "student"
TIMESTEPS = 1000
TEXT_WIDTH = 64


class PromptedFlow(nn.Module):
    """Predicts the flow `noise - clean` of latents, for prompts by their place in `tools.flow.words.every_prompt`.

    Attributes:
        text: T5 encoder of 0.07 M parameters.
        transformer: PixArt of 1.2 M parameters: four blocks of width 128 on 4x4 patches of 2x2 latents.
    """

    ids: torch.Tensor
    mask: torch.Tensor

    def __init__(self, text: T5EncoderModel, transformer: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.text, self.transformer = text, transformer
        tokens = tokenizer()(every_prompt(), padding="max_length", max_length=LONGEST, return_tensors="pt")
        self.register_buffer("ids", tokens.input_ids)
        self.register_buffer("mask", tokens.attention_mask)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Return the flow [N, C, H, W] at states [N, C, H, W] with the shares of noise [N], for prompts int64 [N]."""
        mask = self.mask[prompts]
        words = self.text(input_ids=self.ids[prompts], attention_mask=mask).last_hidden_state
        out: torch.Tensor = self.transformer(x, words, sigma * TIMESTEPS, encoder_attention_mask=mask, return_dict=False)[0]
        return out


def new_network() -> PromptedFlow:
    """Return an untrained network. The attentions to the image and the feed-forward layers start with small gates (PixArt's own start)."""
    text = T5Config(
        vocab_size=32, d_model=TEXT_WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
    )  # fmt: skip
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        cross_attention_dim=128,
        sample_size=LATENT_SIZE,
        patch_size=2,
        caption_channels=TEXT_WIDTH,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return PromptedFlow(T5EncoderModel(text), transformer)


def load_network(folder: Path) -> PromptedFlow:
    """Load a network from the folder that `save_network` wrote, in float32."""
    text = T5EncoderModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True)
    return PromptedFlow(text, transformer).float().eval()


def save_network(model: PromptedFlow, first_stage: AutoencoderKL, scheduler: DPMSolverMultistepScheduler, folder: Path) -> None:
    """Round the weights to float16 and write the pipeline's folder."""
    pipeline = PixArtAlphaPipeline(tokenizer(), model.text.half(), first_stage.half(), model.transformer.half(), scheduler)
    pipeline.save_pretrained(folder)
    model.float()
    first_stage.float()


def flow_scheduler(order: int, spacing: str = "linspace") -> DPMSolverMultistepScheduler:
    """Return DPM-Solver++ on a flow. Order 1 is Euler's method."""
    return DPMSolverMultistepScheduler(
        solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, timestep_spacing=spacing, final_sigmas_type="zero"
    )


def guided_flow(model: PromptedFlow, prompts: torch.Tensor, guidance: float) -> Predict:
    """Return the guided flow at states [N, C, H, W] and a timestep; the other branch has the empty prompt. At guidance 1 there is none."""
    empty = torch.full_like(prompts, len(model.ids) - 1)

    def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = (timestep / TIMESTEPS).expand(len(x))
        conditional: torch.Tensor = model(x, sigma, prompts)
        if guidance == 1:
            return conditional
        unconditional: torch.Tensor = model(x, sigma, empty)
        return unconditional + guidance * (conditional - unconditional)

    return predict


@torch.no_grad()
def flow_samples(predict: Predict, scheduler: DPMSolverMultistepScheduler, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the latents at which diffusers' chain of some steps ends, from noise of their shape."""
    chain = DPMSolverMultistepScheduler.from_config(scheduler.config)
    chain.set_timesteps(steps)
    x = noise
    for timestep in chain.timesteps:
        x = chain.step(predict(x, timestep), timestep, x).prev_sample
    return x
