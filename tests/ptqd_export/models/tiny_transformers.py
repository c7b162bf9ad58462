"""Small random pipelines of diffusion transformers without text encoders, saved by diffusers, with prepared embeddings beside them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

TOKENS, WIDTH, POOLED, ROWS = 5, 12, 10, 3
STAGE = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}  # fmt: skip
"""A first stage that halves the sides once."""

OTHER_STAGES: Mapping[str, Mapping[str, Any]] = {
    "AutoencoderDC": {
        "latent_channels": 8, "attention_head_dim": 4, "scaling_factor": 0.41407,
        "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": (4, 8, 8, 8), "decoder_block_out_channels": (4, 8, 8, 8),
        "encoder_layers_per_block": (1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1),
        "encoder_qkv_multiscales": ((), (), (5,), (5,)), "decoder_qkv_multiscales": ((), (), (5,), (5,)),
    },
    "AutoencoderKLQwenImage": {
        "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True],
        "latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 0.5, 2.0, 1.0],
    },
}  # fmt: skip
"""First stages that halve the sides three times, and once."""


@dataclass(frozen=True)
class Tiny:
    """A family's small pipeline.

    Attributes:
        pipeline: class name of the pipeline in `model_index.json`.
        network: class name and arguments of the transformer.
        scheduler: class name and arguments of the scheduler.
        latents: channels of the first stage, its scale and its shift; those of FLUX.2's if it has neither; the name of another first
            stage; None without one.
        size: images in pixels for the plan; None takes the model's own.
        masked, pooled: whether the network takes a mask of tokens, and pooled embeddings.
        lengths: tokens of each row's prompt and of no prompt, which the mask keeps.
        index: what `model_index.json` says beside the parts.
    """

    pipeline: str
    network: tuple[str, Mapping[str, Any]]
    scheduler: tuple[str, Mapping[str, Any]]
    latents: tuple[int, float | None, float | None] | str | None
    size: tuple[int, int] | None = None
    masked: bool = False
    pooled: bool = False
    lengths: tuple[int, ...] = (TOKENS, 2, 4, 1)
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mask(self) -> str:
        """Name of the mask."""
        known = {"QwenImagePipeline": "encoder_hidden_states_mask", "ChromaPipeline": "attention_mask"}
        return known.get(self.pipeline, "encoder_attention_mask")


PIXART = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1, "cross_attention_dim": 16,
    "sample_size": 8, "patch_size": 2, "caption_channels": WIDTH, "norm_num_groups": 4,
}  # fmt: skip
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 12, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
}  # fmt: skip
FLUX = {
    "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
CHROMA = {
    "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 16, "approximator_hidden_dim": 16,
    "approximator_layers": 1,
}  # fmt: skip
SANA = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH, "sample_size": 6,
}  # fmt: skip
Z_IMAGE = {
    "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": WIDTH,
    "axes_dims": [4, 6, 6], "axes_lens": [72, 16, 16],
}  # fmt: skip
QWEN = {
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
AURAFLOW = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 16,
    "pos_embed_max_size": 64,
}  # fmt: skip
FLUX2 = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 4, 4),
}  # fmt: skip

DPM: tuple[str, Mapping[str, Any]] = ("DPMSolverMultistepScheduler", {})
DPM_ON_FLOW = (DPM[0], {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
FLOW = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}

TINY: Mapping[str, Tiny] = {
    "pixart-sigma": Tiny("PixArtSigmaPipeline", ("PixArtTransformer2DModel", PIXART), DPM, None, masked=True),
    "pixart-alpha": Tiny(
        "PixArtAlphaPipeline",
        ("PixArtTransformer2DModel", {**PIXART, "sample_size": 128, "attention_head_dim": 12, "cross_attention_dim": 24}),
        DPM, None, (48, 80), masked=True,
    ),
    "sd3": Tiny("StableDiffusion3Pipeline", ("SD3Transformer2DModel", SD3), (FLOW, {"shift": 3.0}), None, (48, 64), pooled=True),
    "flux-dev": Tiny(
        "FluxPipeline", ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}), (FLOW, DYNAMIC), (16, 0.3611, 0.1159), (16, 12),
        pooled=True,
    ),
    "flux-schnell": Tiny(
        "FluxPipeline", ("FluxTransformer2DModel", FLUX), (FLOW, {"shift": 1.0}), None, (64, 96), pooled=True
    ),
    "chroma": Tiny(
        "ChromaPipeline", ("ChromaTransformer2DModel", CHROMA), (FLOW, {**DYNAMIC, "use_beta_sigmas": True}), (16, 0.3611, 0.1159),
        (16, 12), masked=True,
    ),
    "flux2-klein": Tiny(
        "Flux2KleinPipeline", ("Flux2Transformer2DModel", {**FLUX2, "guidance_embeds": False}), (FLOW, DYNAMIC), (4, None, None), (16, 12),
    ),
    "flux2-klein-distilled": Tiny(
        "Flux2KleinPipeline", ("Flux2Transformer2DModel", {**FLUX2, "guidance_embeds": False}), (FLOW, DYNAMIC), (4, None, None), (16, 12),
        index={"is_distilled": True},
    ),
    "flux2-dev": Tiny("Flux2Pipeline", ("Flux2Transformer2DModel", FLUX2), (FLOW, DYNAMIC), None, (64, 96)),
    "qwen-image": Tiny(
        "QwenImagePipeline", ("QwenImageTransformer2DModel", QWEN), (FLOW, DYNAMIC), "AutoencoderKLQwenImage", (12, 20), masked=True
    ),
    "auraflow": Tiny(
        "AuraFlowPipeline", ("AuraFlowTransformer2DModel", AURAFLOW), (FLOW, {"shift": 1.73}), (4, 0.13, None), (16, 12)
    ),
    "sana": Tiny("SanaPipeline", ("SanaTransformer2DModel", SANA), DPM_ON_FLOW, "AutoencoderDC", (32, 64), masked=True),
    "sana-sprint": Tiny(
        "SanaSprintPipeline",
        ("SanaTransformer2DModel", {**SANA, "guidance_embeds": True, "guidance_embeds_scale": 0.5, "qk_norm": "rms_norm_across_heads"}),
        ("SCMScheduler", {}), "AutoencoderDC", (32, 64), masked=True,
    ),
    "z-image": Tiny(
        "ZImagePipeline", ("ZImageTransformer2DModel", Z_IMAGE), (FLOW, {"shift": 6.0}), (4, 0.3611, 0.1159), (16, 12), masked=True,
        lengths=(40, 2, 7, 1),
    ),
}  # fmt: skip

PRECISIONS = ("w8a8", "w4a8")
"""Precisions of the builds that prove a family."""

QUICK = ("pixart-sigma", "flux-dev")
"""Families whose builds are quick tests: they cover tokens and latents, masks and pooled embeddings, both kinds of guidance."""

SLOW = tuple(name for name in TINY if name not in QUICK)
"""Families whose builds are marked slow."""

PIPED = (
    "pixart-sigma", "pixart-alpha", "sd3", "flux-dev", "flux-schnell", "chroma", "flux2-dev", "flux2-klein", "qwen-image", "auraflow",
    "sana", "sana-sprint", "z-image",
)  # fmt: skip
"""Families whose bundles run in their pipelines, and whose quantized graphs are built by TensorRT-RTX."""

USUAL = {
    "pixart-sigma": ("dpm++2m", 20, 4.5),
    "pixart-alpha": ("dpm++2m", 20, 4.5),
    "sd3": ("flow-euler", 28, 7.0),
    "flux-dev": ("flow-euler", 28, 3.5),
    "flux-schnell": ("flow-euler", 4, 1.0),
    "chroma": ("flow-euler", 35, 5.0),
    "flux2-klein": ("flow-euler", 50, 4.0),
    "flux2-klein-distilled": ("flow-euler", 4, 1.0),
    "flux2-dev": ("flow-euler", 50, 4.0),
    "qwen-image": ("flow-euler", 50, 4.0),
    "auraflow": ("flow-euler", 50, 3.5),
    "sana": ("dpm++2m", 20, 4.5),
    "sana-sprint": ("scm", 2, 4.5),
    "z-image": ("flow-euler", 50, 6.0),
}
"""What `init` writes: the sampler, the steps and the guidance of the pipeline."""


def model_section(name: str) -> dict[str, Any]:
    """Return the plan's section `model`, for a plan beside the folder that `write_tiny` writes."""
    size = TINY[name].size
    return {"path": "model", "conditions": "conditions.npz", **({} if size is None else {"size": list(size)})}


def write_tiny(name: str, folder: Path) -> Path:
    """Write the pipeline to `folder / "model"` and its prepared embeddings to `folder / "conditions.npz"`; return the model's folder."""
    import diffusers

    tiny = TINY[name]
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "transformer": getattr(diffusers, tiny.network[0])(**tiny.network[1]),
        "scheduler": getattr(diffusers, tiny.scheduler[0])(**tiny.scheduler[1]),
    }
    if tiny.latents is not None:
        parts["vae"] = first_stage(tiny.latents)
    spread(parts["transformer"])
    pipeline = getattr(diffusers, tiny.pipeline)(**{**dict.fromkeys(required_parts(tiny)), **parts, **tiny.index})
    pipeline.save_pretrained(folder / "model")
    np.savez(folder / "conditions.npz", allow_pickle=False, **tables(tiny))
    return folder / "model"


def first_stage(latents: tuple[int, float | None, float | None] | str) -> Any:
    """Return a first stage, see `Tiny.latents`."""
    import diffusers

    if isinstance(latents, str):
        return getattr(diffusers, latents)(**OTHER_STAGES[latents])
    channels, scale, shift = latents
    if scale is not None:
        return diffusers.AutoencoderKL(**STAGE, latent_channels=channels, scaling_factor=scale, shift_factor=shift)
    stage = diffusers.AutoencoderKLFlux2(**STAGE, latent_channels=channels)
    torch.nn.init.normal_(stage.bn.running_mean)
    torch.nn.init.uniform_(stage.bn.running_var, 0.5, 2.0)
    return stage


def spread(network: torch.nn.Module) -> None:
    """Give parameters that start at zero or one values of their own: gates and biases would hide what lies behind them."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.unique().numel() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))


def tables(tiny: Tiny) -> dict[str, NDArray[Any]]:
    """Return the conditions [rows, ...] and their values for "no prompt"."""
    random = np.random.default_rng(0)
    tokens = max(tiny.lengths)
    found: dict[str, NDArray[Any]] = {"encoder_hidden_states": random.standard_normal((ROWS + 1, tokens, WIDTH), dtype=np.float32)}
    if tiny.masked:
        found[tiny.mask] = (np.arange(tokens) < np.array(tiny.lengths)[:, None]).astype(np.int64)
    if tiny.pooled:
        found["pooled_projections"] = random.standard_normal((ROWS + 1, POOLED), dtype=np.float32)
    return {name: table[:ROWS] for name, table in found.items()} | {f"null.{name}": table[ROWS] for name, table in found.items()}


def required_parts(tiny: Tiny) -> list[str]:
    """Return the parts that a pipeline's constructor requires."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, tiny.pipeline)).parameters
    return [name for name, one in parameters.items() if one.default is inspect.Parameter.empty]
