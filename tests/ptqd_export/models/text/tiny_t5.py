"""Small random pipelines of diffusion transformers with T5 and CLIP text encoders, saved by diffusers, with a real small T5 tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.ptqd_export.models.text import tiny_text
from tests.ptqd_export.models.tiny_transformers import CHROMA, DPM, FLOW, FLUX, PIXART, SD3, STAGE, spread

WIDTH, CLIP_WIDTHS, PROJECTED = 48, (16, 24), 12
SENTENCES = ("a photo of the red cat", "the word of a dog, isn't it?", "caf\u00e9 in 1984 <person>", "watercolour of a lighthouse") * 4


def write_tokenizer(folder: Path, *, longest: int = 512) -> None:
    """Write a T5 tokenizer, a Unigram model of a few sentences, as transformers saves it."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )  # fmt: skip
    trained.train_from_iterator(SENTENCES, trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    transformers.T5TokenizerFast(vocab=pieces, extra_ids=3, model_max_length=longest).save_pretrained(folder)


def write_pixart(folder: Path, kind: str = "PixArtSigmaPipeline") -> Path:
    write_tokenizer(folder / "t5")
    return _save(
        kind,
        folder,
        "PixArtTransformer2DModel",
        {**PIXART, "caption_channels": WIDTH},
        DPM,
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(folder),
    )


def write_sd3(folder: Path, *, whole: bool = True) -> Path:
    """Write Stable Diffusion 3, with its third encoder or without."""
    write_tokenizer(folder / "t5")
    tiny_text.write_tokenizer(folder / "clip", tiny_text.END)
    tiny_text.write_tokenizer(folder / "clip_2", "!")
    clips = [_clip("CLIPTextModelWithProjection", width, projection_dim=PROJECTED) for width in CLIP_WIDTHS]
    config = {**SD3, "joint_attention_dim": WIDTH, "pooled_projection_dim": 2 * PROJECTED}
    return _save(
        "StableDiffusion3Pipeline", folder, "SD3Transformer2DModel", config, (FLOW, {"shift": 3.0}),
        text_encoder=clips[0], text_encoder_2=clips[1], text_encoder_3=_t5() if whole else None,
        tokenizer=_clip_tokenizer(folder / "clip"), tokenizer_2=_clip_tokenizer(folder / "clip_2"),
        tokenizer_3=_t5_tokenizer(folder) if whole else None,
    )  # fmt: skip


def write_flux(folder: Path, *, guided: bool) -> Path:
    """Write FLUX.1 dev, whose network takes the guidance, or schnell, whose CLIP names its last token as old configurations do."""
    write_tokenizer(folder / "t5")
    tiny_text.write_tokenizer(folder / "clip", tiny_text.END)
    config = {**FLUX, "joint_attention_dim": WIDTH, "pooled_projection_dim": CLIP_WIDTHS[0], "guidance_embeds": guided}
    return _save(
        "FluxPipeline", folder, "FluxTransformer2DModel", config, (FLOW, {"shift": 3.0}),
        text_encoder=_clip("CLIPTextModel", CLIP_WIDTHS[0], **({} if guided else {"eos_token_id": 2})), text_encoder_2=_t5(),
        tokenizer=_clip_tokenizer(folder / "clip"), tokenizer_2=_t5_tokenizer(folder),
    )  # fmt: skip


def write_chroma(folder: Path) -> Path:
    write_tokenizer(folder / "t5")
    config = {**CHROMA, "joint_attention_dim": WIDTH}
    texts = {"text_encoder": _t5(), "tokenizer": _t5_tokenizer(folder)}
    return _save("ChromaPipeline", folder, "ChromaTransformer2DModel", config, (FLOW, {"use_beta_sigmas": True}), **texts)


WRITE: Mapping[str, Callable[[Path], Path]] = {
    "pixart-sigma": write_pixart,
    "pixart-alpha": lambda folder: write_pixart(folder, "PixArtAlphaPipeline"),
    "sd3": write_sd3,
    "sd3-without-t5": lambda folder: write_sd3(folder, whole=False),
    "flux-dev": lambda folder: write_flux(folder, guided=True),
    "chroma": write_chroma,
    "flux-schnell": lambda folder: write_flux(folder, guided=False),
}


def _save(kind: str, folder: Path, network: str, config: Mapping[str, Any], scheduler: tuple[str, Mapping[str, Any]], **texts: Any) -> Path:
    """Save the pipeline to `folder / "model"`."""
    torch.manual_seed(0)
    transformer = getattr(diffusers, network)(**config)
    spread(transformer)
    latents = 4 if network.startswith("PixArt") else 16
    vae = diffusers.AutoencoderKL(**STAGE, latent_channels=latents, scaling_factor=0.5, shift_factor=None if latents == 4 else 0.1)
    made = getattr(diffusers, scheduler[0])(**scheduler[1])
    getattr(diffusers, kind)(transformer=transformer, vae=vae, scheduler=made, **texts).save_pretrained(folder / "model")
    return folder / "model"


def _t5() -> Any:
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    return transformers.T5EncoderModel(config).eval()


def _clip(kind: str, width: int, **settings: Any) -> Any:
    torch.manual_seed(2)
    return tiny_text.text_encoder(kind, width, {"hidden_act": "gelu", **settings})


def _t5_tokenizer(folder: Path) -> Any:
    return transformers.T5TokenizerFast.from_pretrained(folder / "t5")


def _clip_tokenizer(folder: Path) -> Any:
    return transformers.CLIPTokenizerFast.from_pretrained(folder)
