"""Tiny random Stable Diffusion pipelines in the format of `save_pretrained`, with a real tiny tokenizer and a reference implementation."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MERGES = (
    "c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>", "p h", "ph o", "t o</w>", "pho to</w>", "o f</w>", "a n", "r e", "re d</w>",
    "i n", "\u00c3 \u00a9</w>", "w o", "r d</w>", "wo rd</w>",
)  # fmt: skip
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def byte_letters() -> list[str]:
    """Return GPT-2's printable character for every byte: the byte's own character if printable, else one of the code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary() -> dict[str, int]:
    """Token numbers: letters in CLIP's order (printable first, so that "!" is 0), word-final letters, merges, start and end."""
    letters = sorted(byte_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES), START, END]
    return {token: number for number, token in enumerate(tokens)}


def slow_ids(text: str, pad: str) -> list[int]:
    """Return padded and truncated token ids by the algorithm of CLIP's own tokenizer (Radford et al. 2021, simple_tokenizer.py)."""
    vocab, letters = vocabulary(), byte_letters()
    words = [word for word in re.split(f"({'|'.join(re.escape(t) for t in {START, END, pad})})", text) if word]
    ids: list[int] = []
    for word in words:
        if word in (START, END, pad):
            ids.append(vocab[word])
            continue
        normal = re.sub(r"\s+", " ", unicodedata.normalize("NFC", word)).lower()
        for piece in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", normal):
            ids += [vocab[token] for token in _merged([letters[byte] for byte in piece.encode()])]
    ids = [vocab[START], *ids[: LENGTH - 2], vocab[END]]
    return ids + [vocab[pad]] * (LENGTH - len(ids))


def _merged(letters: list[str]) -> list[str]:
    """Byte-pair encoding of one word: of all mergeable neighbours, merge the pair that was learned first everywhere, and repeat."""
    word = [*letters[:-1], f"{letters[-1]}</w>"]
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    while pairs := [pair for pair in itertools.pairwise(word) if pair in ranks]:
        best, joined, position = min(pairs, key=ranks.__getitem__), [], 0
        while position < len(word):
            size = 2 if tuple(word[position : position + 2]) == best else 1
            joined.append("".join(word[position : position + size]))
            position += size
        word = joined
    return word


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write the tokenizer in the format of CLIP's slow tokenizer, without a tokenizer.json."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def write_sd1(folder: Path, *, variant: str | None = None) -> Path:
    """Write a pipeline with epsilon prediction and one text encoder, whose last layer is used."""
    return _write_sd(folder, {}, {"prediction_type": "epsilon"}, {"hidden_act": "quick_gelu"}, variant)


def write_sd2(folder: Path) -> Path:
    """Write a pipeline with v prediction, linear projections, attention heads of one size, and prompts padded with token 0."""
    unet = {"use_linear_projection": True, "attention_head_dim": (2,), "upcast_attention": True}
    return _write_sd(folder, unet, {"prediction_type": "v_prediction"}, {"hidden_act": "gelu"}, None, pad="!")


def write_sdxl(folder: Path, *, variant: str | None = None, zeros: bool = True) -> Path:
    """Write a pipeline with two text encoders, pooled embeddings and size conditioning."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 12}
    write_tokenizer(folder / "tokenizer", END)
    write_tokenizer(folder / "tokenizer_2", "!")
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(), unet=_unet(16 + 24, use_linear_projection=True, **added), scheduler=_scheduler({}),
        tokenizer=_tokenizer(folder / "tokenizer"), tokenizer_2=_tokenizer(folder / "tokenizer_2"),
        text_encoder=text_encoder("CLIPTextModel", 16, {"hidden_act": "quick_gelu"}),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 24, {"hidden_act": "gelu", "projection_dim": 12}),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    return _save(pipeline, folder, variant)


def write_preview(folder: Path, channels: int = 4) -> None:
    """Write a small decoder for previews of latents with `channels` channels."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    blocks = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
    counts = {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
    AutoencoderTiny(**blocks, **counts, latent_channels=channels).save_pretrained(folder)


def write_refiner(folder: Path) -> Path:
    """Write SDXL's refiner: one text encoder, the second, and an aesthetic score beside the image's size."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 5 * 8 + 12}
    write_tokenizer(folder / "tokenizer_2", "!")
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=_vae(), unet=_unet(24, use_linear_projection=True, **added), scheduler=_scheduler({}),
        tokenizer=None, tokenizer_2=_tokenizer(folder / "tokenizer_2"), text_encoder=None,
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", 24, {"hidden_act": "gelu", "projection_dim": 12}),
        requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip
    return _save(pipeline, folder, None)


CLIP_SIDE = 32
CLIP_MEAN, CLIP_DEVIATION = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def write_clip(folder: Path) -> Path:
    """Write a CLIP model with both towers, a tokenizer and a preprocessor. Some pictures fit some prompts."""
    import transformers

    torch.manual_seed(1)
    write_tokenizer(folder, END)
    vocab = vocabulary()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": vocab[START], "eos_token_id": vocab[END], "pad_token_id": 1}
    text = {"vocab_size": len(vocab), "max_position_embeddings": LENGTH, **sizes, **ids}
    config = transformers.CLIPConfig(text_config=text, vision_config={"image_size": CLIP_SIDE, "patch_size": 8, **sizes}, projection_dim=12)
    network = transformers.CLIPModel(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    network.save_pretrained(folder)
    preprocessor = {
        "size": {"shortest_edge": CLIP_SIDE}, "crop_size": {"height": CLIP_SIDE, "width": CLIP_SIDE}, "resample": 3,
        "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
        "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _write_sd(
    folder: Path, unet: Mapping[str, Any], scheduler: Mapping[str, Any], text: Mapping[str, Any], variant: str | None, pad: str = END
) -> Path:
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", pad)
    pipeline = StableDiffusionPipeline(
        vae=_vae(), unet=_unet(16, **unet), scheduler=_scheduler(scheduler), tokenizer=_tokenizer(folder / "tokenizer"),
        text_encoder=text_encoder("CLIPTextModel", 16, text), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return _save(pipeline, folder, variant)


def _save(pipeline: Any, folder: Path, variant: str | None) -> Path:
    """Save everything but the tokenizers, which are already in the folder."""
    if variant == "fp16":
        pipeline.to(torch.float16)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).save_pretrained(folder / name, variant=variant)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(folder)


def text_encoder(kind: str, width: int, settings: Mapping[str, Any]) -> Any:
    import transformers

    vocab = vocabulary()
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=vocab[START], pad_token_id=1, **{"eos_token_id": vocab[END], **settings},
    )  # fmt: skip
    network = getattr(transformers, kind)(config).eval()
    for parameter in network.parameters():  # with the library's small initial weights, all prompts give nearly the same output
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return network


def _unet(cross_attention_dim: int, **settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=cross_attention_dim, **{"attention_head_dim": 2, **settings},
    ).eval()  # fmt: skip


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False,
    ).eval()  # fmt: skip


def _scheduler(settings: Mapping[str, Any]) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **settings,
    )
