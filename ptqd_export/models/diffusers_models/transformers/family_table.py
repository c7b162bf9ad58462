"""The table of families: the transformers of diffusers that the adapter takes, by class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engines.errors import UsageError
from ptqd_export.models.conditions import EMBEDDINGS, GUIDANCE, MASK, ConditionInput
from ptqd_export.models.diffusers_models.transformers.chroma import TOKEN_MASK, ModulationInput, whole_mask
from ptqd_export.models.diffusers_models.transformers.fixed_rotary import LONGEST_TEXT, FixedRotary, RotaryTables, grid_positions
from ptqd_export.models.diffusers_models.transformers.frame import Frame
from ptqd_export.models.diffusers_models.transformers.qwen_image import prepare_qwen_image
from ptqd_export.models.diffusers_models.transformers.transformer_family import (
    Config,
    Named,
    PipelineGuidance,
    Stated,
    TimestepMap,
    TransformerFamily,
    Usual,
)
from ptqd_export.models.diffusers_models.transformers.z_image import prepare_z_image
from ptqd_export.models.text.prompt_forms import chat, flux2_dev, qwen_image, sana_instruction
from ptqd_export.models.text.text_use import CLIP, CLIP_PROJECTED, GEMMA2, MISTRAL3, PENULTIMATE, QWEN3, QWEN_VL, T5, UMT5, TextUse

QWEN_MASK = "encoder_hidden_states_mask"
POOLED = "pooled_projections"

KLEIN_LAYERS = (9, 18, 27)
"""Layers of Qwen3 whose outputs FLUX.2 klein reads."""

DEV_LAYERS = (10, 20, 30)
"""Layers of Mistral 3 whose outputs FLUX.2 dev reads."""

IMG_KEPT = "[IMG] in a prompt is a token of the encoder; the pipeline removes it"

NOT_CLEANED = "prompts are not cleaned of links and mark-up: as in the pipeline with clean_caption=False, or without beautifulsoup4"

Z_IMAGE_SCALE = (
    "sampler.guidance is 1 more than the guidance_scale of ZImagePipeline, which adds its multiple of the difference to the conditional "
    "output; a model distilled for few steps (Turbo, whose scheduler has shift 3) takes guidance 1, which is none, and 8 steps"
)

Z_IMAGE_TURBO_SHIFT = 3.0

SD3_TURBO = (
    "a model distilled for few steps has the same configuration as one that was not, and this one's name does not tell: "
    "Stable Diffusion 3.5 large turbo takes sampler.steps 4 and sampler.guidance 1"
)


def _embeddings(width: int) -> ConditionInput:
    return ConditionInput(EMBEDDINGS, "float32", ("tokens", width))


def _masked(width: int) -> tuple[ConditionInput, ...]:
    """Return the inputs of a network that reads as many tokens as a mask keeps: 1 keeps a token, 0 does not."""
    return _embeddings(width), ConditionInput(MASK, "int64", ("tokens",))


def _pooled(config: Config) -> tuple[ConditionInput, ...]:
    return _embeddings(config["joint_attention_dim"]), ConditionInput(POOLED, "float32", (config["pooled_projection_dim"],))


def _guidance(config: Config) -> tuple[ConditionInput, ...]:
    return (ConditionInput(GUIDANCE, "float32", ()),) if config["guidance_embeds"] else ()


def _flux_conditions(config: Config) -> tuple[ConditionInput, ...]:
    return *_pooled(config), *_guidance(config)


def _flux_usual(stated: Stated) -> Usual:
    """Return the settings of FLUX.1 dev; a network without guidance is schnell, which is distilled for four steps."""
    return Usual(28, 3.5) if stated.network["guidance_embeds"] else Usual(4, 1.0)


def _flux_positions(frame: Frame, conditions: Named) -> Mapping[str, Any]:
    """Return position arguments of the right lengths; `FixedRotary` has the positions themselves."""
    text, axes = conditions[EMBEDDINGS], len(frame.config["axes_dims_rope"])
    return {"img_ids": text.new_zeros(frame.tokens(2), axes), "txt_ids": text.new_zeros(text.shape[1], axes)}


def _fix_flux_rotary(network: nn.Module, frame: Frame) -> None:
    rotary: Any = network.pos_embed
    network.pos_embed = FixedRotary(grid_positions(frame.grid(2), len(rotary.axes_dim)), rotary.axes_dim, rotary.theta)


def _fix_chroma(network: nn.Module, frame: Frame) -> None:
    _fix_flux_rotary(network, frame)
    network.time_text_embed = ModulationInput(network.time_text_embed)  # type: ignore[arg-type]  # diffusers' own


def _flux2_conditions(config: Config) -> tuple[ConditionInput, ...]:
    return _embeddings(config["joint_attention_dim"]), *_guidance(config)


def _flux2_usual(stated: Stated) -> Usual:
    """Return the settings of FLUX.2 dev and of the undistilled klein; the distilled one takes four steps."""
    return Usual(4, 1.0) if stated.pipeline.get("is_distilled") else Usual(50, 4.0)


def _z_image_usual(stated: Stated) -> Usual:
    """Return the settings of Z-Image, whose scheduler shifts by 6, or of Turbo, which is distilled for eight steps at a shift of 3."""
    return Usual(8, 1.0) if stated.scheduler.get("shift") == Z_IMAGE_TURBO_SHIFT else Usual(50, 6.0)


def _flux2_positions(frame: Frame, conditions: Named) -> Mapping[str, Any]:
    """Return positions on four axes, int64 [tokens, 4]: an image lies on the second and third, text on the last."""
    text = conditions[EMBEDDINGS]
    one, words = (torch.arange(length, device=text.device) for length in (1, text.shape[1]))
    rows, columns = (torch.arange(side, device=text.device) for side in frame.sides)
    return {"img_ids": torch.cartesian_prod(one, rows, columns, one), "txt_ids": torch.cartesian_prod(one, one, one, words)}


def _fix_flux2_rotary(network: nn.Module, frame: Frame) -> None:
    rotary: Any = network.pos_embed
    network.pos_embed = RotaryTables(max(*frame.sides, LONGEST_TEXT), rotary.axes_dim, rotary.theta)


def _qwen_conditions(config: Config) -> tuple[ConditionInput, ...]:
    """Return the inputs of a network for text to image.

    Raises:
        UsageError: the network is one that edits images, or that paints layers.
    """
    other = [name for name in ("zero_cond_t", "use_layer3d_rope", "use_additional_t_cond") if config[name]]
    if other:
        raise UsageError(
            "This transformer takes more than a state, which is not supported.",
            found=f"{' and '.join(other)} of QwenImageTransformer2DModel",
            expected="a network for text to image",
            mend="take Qwen-Image",
        )
    return _embeddings(config["joint_attention_dim"]), ConditionInput(QWEN_MASK, "int64", ("tokens",))


def _pixart_sizes(frame: Frame, conditions: Named) -> Mapping[str, Any]:
    """Return height and width in pixels and their ratio, which the 1024-pixel networks of PixArt-alpha embed."""
    height, width = (side * frame.pixels for side in frame.sides)
    stated = frame.config["use_additional_conditions"]
    if not (frame.config["sample_size"] == 128 if stated is None else stated):
        return {}
    row = torch.ones_like(conditions[EMBEDDINGS][:, 0, :1])
    return {"added_cond_kwargs": {"resolution": torch.cat([row * height, row * width], dim=1), "aspect_ratio": row * (height / width)}}


def _sana_guidance(frame: Frame, conditions: Named) -> Mapping[str, Any]:
    """Return the guidance of SANA-Sprint as its network takes it."""
    scale = frame.config["guidance_embeds_scale"]
    return {GUIDANCE: scale * conditions[GUIDANCE]} if GUIDANCE in conditions else {}


def _fix_pixart_positions(network: nn.Module, frame: Frame) -> None:
    """Compute the position embeddings of another size than the configuration's now, not in the graph at every call."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    embed: Any = network.pos_embed
    grid = frame.grid(embed.patch_size)
    if grid == (embed.height, embed.width):
        return
    positions = get_2d_sincos_pos_embed(
        embed.pos_embed.shape[-1], grid, base_size=embed.base_size, interpolation_scale=embed.interpolation_scale,
        device=embed.pos_embed.device, output_type="pt",
    )  # fmt: skip
    embed.pos_embed, (embed.height, embed.width) = positions.float().unsqueeze(0), grid


def _t5(folder: str, tokens: int, **settings: Any) -> TextUse:
    return TextUse(folder, {EMBEDDINGS: "last"}, kinds=(T5,), tokens=tokens, **settings)


def _pixart_texts(_: Config, pipeline: str | None) -> tuple[TextUse, ...]:
    tokens = 120 if pipeline == "PixArtAlphaPipeline" else 300
    return (_t5("text_encoder", tokens, takes_mask=True, mask_input=MASK, lowercase=True, note=NOT_CLEANED),)


def _sd3_texts(*_: object) -> tuple[TextUse, ...]:
    clips = (
        TextUse(name, {EMBEDDINGS: PENULTIMATE, POOLED: "projected"}, (CLIP_PROJECTED,)) for name in ("text_encoder", "text_encoder_2")
    )
    return *clips, _t5("text_encoder_3", 256, joins="behind", optional=True)


def _flux_texts(config: Config, _: str | None) -> tuple[TextUse, ...]:
    """Return the encoders of dev, or of schnell, which was distilled with half the tokens."""
    return TextUse("text_encoder", {POOLED: "pooled"}, (CLIP,)), _t5("text_encoder_2", 512 if config["guidance_embeds"] else 256)


def _chroma_texts(*_: object) -> tuple[TextUse, ...]:
    """Return Chroma's encoder. Its network was trained to see one token of the padding."""
    return (_t5("text_encoder", 512, takes_mask=True, mask_input=TOKEN_MASK, mask_padding=1),)


def _sana_texts(*_: object) -> tuple[TextUse, ...]:
    return (
        TextUse(
            "text_encoder", {EMBEDDINGS: "last"}, GEMMA2, 300, takes_mask=True, mask_input=MASK, lowercase=True,
            forms=sana_instruction, padding_side="right",
        ),
    )  # fmt: skip


def _z_image_texts(*_: object) -> tuple[TextUse, ...]:
    return (
        TextUse(
            "text_encoder", {EMBEDDINGS: PENULTIMATE}, QWEN3, 512, takes_mask=True, mask_input=MASK,
            forms=chat(enable_thinking=True), padding_side="right", clears_padding=True,
        ),
    )  # fmt: skip


def _auraflow_texts(*_: object) -> tuple[TextUse, ...]:
    return (TextUse("text_encoder", {EMBEDDINGS: "last"}, (UMT5,), 256, takes_mask=True, clears_padding=True),)


def _flux2_texts(config: Config, _: str | None) -> tuple[TextUse, ...]:
    """Return the encoder of dev, Mistral 3 without what it sees, or that of klein."""
    if config["guidance_embeds"]:
        return (
            TextUse(
                "text_encoder", {EMBEDDINGS: DEV_LAYERS}, (MISTRAL3,), 512, takes_mask=True, forms=flux2_dev, note=IMG_KEPT,
            ),
        )  # fmt: skip
    return (TextUse("text_encoder", {EMBEDDINGS: KLEIN_LAYERS}, QWEN3, 512, takes_mask=True, forms=chat(enable_thinking=False)),)


def _qwen_texts(*_: object) -> tuple[TextUse, ...]:
    return (
        TextUse(
            "text_encoder", {EMBEDDINGS: "last"}, (QWEN_VL,), 512, takes_mask=True, mask_input=QWEN_MASK, forms=qwen_image,
            padding_side="right", clears_padding=True,
        ),
    )  # fmt: skip


TRANSFORMERS: Mapping[str, TransformerFamily] = {
    "PixArtTransformer2DModel": TransformerFamily(
        conditions=lambda config: _masked(config["caption_channels"] or config["cross_attention_dim"]),
        usual=lambda *_: Usual(20, 4.5),
        texts=_pixart_texts,
        extra=_pixart_sizes,
        prepare=_fix_pixart_positions,
    ),
    "SD3Transformer2DModel": TransformerFamily(conditions=_pooled, usual=lambda *_: Usual(28, 7.0), texts=_sd3_texts, unmarked=SD3_TURBO),
    "FluxTransformer2DModel": TransformerFamily(
        conditions=_flux_conditions,
        usual=_flux_usual,
        patch=2,
        layout="tokens",
        timestep=lambda _: TimestepMap(1 / 1000),
        size=128,
        last_sigma="step",
        texts=_flux_texts,
        pipeline_guidance=PipelineGuidance("true_cfg_scale"),
        extra=_flux_positions,
        prepare=_fix_flux_rotary,
    ),
    "ChromaTransformer2DModel": TransformerFamily(
        conditions=lambda config: (_embeddings(config["joint_attention_dim"]), ConditionInput(TOKEN_MASK, "int64", ("tokens",))),
        usual=lambda *_: Usual(35, 5.0),
        texts=_chroma_texts,
        patch=2,
        layout="tokens",
        timestep=lambda _: TimestepMap(1 / 1000),
        size=128,
        last_sigma="step",
        extra=lambda frame, conditions: {**_flux_positions(frame, conditions), **whole_mask(frame, conditions)},
        prepare=_fix_chroma,
    ),
    "Flux2Transformer2DModel": TransformerFamily(
        conditions=_flux2_conditions,
        usual=_flux2_usual,
        texts=_flux2_texts,
        layout="tokens",
        timestep=lambda _: TimestepMap(1 / 1000),
        size=64,
        pixels=16,
        last_sigma="step",
        mu_of_steps=True,
        axes_behind=1,
        extra=_flux2_positions,
        prepare=_fix_flux2_rotary,
    ),
    "AuraFlowTransformer2DModel": TransformerFamily(
        conditions=lambda config: (_embeddings(config["joint_attention_dim"]),),
        usual=lambda *_: Usual(50, 3.5),
        texts=_auraflow_texts,
        timestep=lambda _: TimestepMap(1 / 1000),
    ),
    "SanaTransformer2DModel": TransformerFamily(
        conditions=lambda config: (*_masked(config["caption_channels"]), *_guidance(config)),
        usual=lambda stated: Usual(2 if stated.network["guidance_embeds"] else 20, 4.5),
        texts=_sana_texts,
        timestep=lambda config: TimestepMap(1 / 1000 if config["guidance_embeds"] else config["timestep_scale"]),
        pixels=32,
        extra=_sana_guidance,
    ),
    "QwenImageTransformer2DModel": TransformerFamily(
        conditions=_qwen_conditions,
        usual=lambda *_: Usual(50, 4.0),
        patch=2,
        texts=_qwen_texts,
        layout="tokens",
        timestep=lambda _: TimestepMap(1 / 1000),
        size=128,
        last_sigma="step",
        pipeline_guidance=PipelineGuidance("true_cfg_scale"),
        extra=lambda *_: {"img_shapes": None},  # the positions are fixed
        prepare=prepare_qwen_image,
        keeps_norm=True,
    ),
    "ZImageTransformer2DModel": TransformerFamily(
        conditions=lambda config: _masked(config["cap_feat_dim"]),
        usual=_z_image_usual,
        distilled=Usual(8, 1.0),
        texts=_z_image_texts,
        patch=2,
        timestep=lambda _: TimestepMap(-1 / 1000, 1.0),
        negated=True,
        size=128,
        last_sigma="step",
        listed=True,
        pipeline_guidance=PipelineGuidance(offset=-1.0),
        prepare=prepare_z_image,
        note=Z_IMAGE_SCALE,
    ),
}
