"""Small random pipelines of diffusion transformers whose prompts are read by language models, saved by diffusers, with small tokenizers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.ptqd_export.models.tiny_transformers import TINY, required_parts, spread

WIDTH, VOCABULARY = 24, 400
SENTENCES = ("a photo of the red cat", "the word of a dog, isn't it?", "caf\u00e9 in 1984 <person>", "watercolour of a lighthouse\n") * 4
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY + 50, "hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.3,
}  # fmt: skip
WIDTHS = ("caption_channels", "cap_feat_dim", "joint_attention_dim")
"""Keys of a transformer's configuration with the width of the embeddings that it takes."""


def instruction() -> tuple[str, ...]:
    """Return the lines that SanaPipeline writes in front of prompts."""
    return tuple(inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def gemma_tokenizer() -> Any:
    """Return a tokenizer of words behind the blanks that they follow, with bytes for other signs. It also knows Sana's instruction."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    parts = _trained((*SENTENCES, *instruction()), special, pre_tokenizers.Metaspace(prepend_scheme="never"), VOCABULARY + 250)
    return transformers.GemmaTokenizerFast(**parts)


def llama_tokenizer() -> Any:
    """Return a tokenizer of the same kind whose blanks lie in front of words, which ends prompts with a token."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    parts = _trained(SENTENCES, special, pre_tokenizers.Metaspace(), VOCABULARY)
    return transformers.LlamaTokenizerFast(**parts, pad_token="<s>", add_bos_token=False, add_eos_token=True)


def qwen_tokenizer() -> Any:
    """Return a tokenizer of bytes with a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    parts = _trained((*SENTENCES, "user\nassistant\n"), special, pre_tokenizers.ByteLevel(add_prefix_space=False), VOCABULARY, alphabet)
    made = transformers.Qwen2TokenizerFast(**parts, chat_template=TEMPLATE, padding_side="right")
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    return made


def _trained(sentences: tuple[str, ...], special: list[str], split: Any, size: int, alphabet: tuple[str, ...] | list[str] = ()) -> Any:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False)
    trained.train_from_iterator(sentences, trainer)
    model = json.loads(trained.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def gemma2() -> Any:
    config = transformers.Gemma2Config(
        **{**SIZES, "vocab_size": VOCABULARY + 250}, num_hidden_layers=2, head_dim=8, attn_logit_softcapping=5.0, sliding_window=2048
    )
    return transformers.Gemma2Model(config)


def qwen3(kind: str, layers: int) -> Any:
    config = transformers.Qwen3Config(**SIZES, num_hidden_layers=layers, head_dim=8, tie_word_embeddings=kind == "Qwen3Model")
    return getattr(transformers, kind)(config)


def umt5() -> Any:
    config = transformers.UMT5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    return transformers.UMT5EncoderModel(config)


def qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "num_hidden_layers": 2, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH, "patch_size": 4},
        vision_start_token_id=440, vision_end_token_id=441, image_token_id=442, video_token_id=443,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


PARTS: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "sana": (gemma_tokenizer, gemma2),
    "z-image": (qwen_tokenizer, lambda: qwen3("Qwen3Model", 3)),
    "auraflow": (llama_tokenizer, umt5),
    "flux2-klein": (qwen_tokenizer, lambda: qwen3("Qwen3ForCausalLM", 4)),
    "qwen-image": (qwen_tokenizer, qwen_vl),
}
"""The tokenizer and the text encoder of each family."""


def write_with_text(family: str, folder: Path) -> Path:
    """Write a family's pipeline to `folder / "model"`."""
    tiny, (tokenizer, encoder) = TINY[family], PARTS[family]
    kind, config = tiny.network
    torch.manual_seed(0)
    places = {"axes_lens": [640, 16, 16]} if family == "z-image" else {}  # of a whole caption, and its image
    transformer = getattr(diffusers, kind)(**{**config, **{key: _width(family) for key in WIDTHS if key in config}, **places})
    text_encoder = encoder().eval()
    spread(transformer)
    spread(text_encoder)
    parts = {
        "transformer": transformer, "scheduler": getattr(diffusers, tiny.scheduler[0])(**tiny.scheduler[1]),
        "text_encoder": text_encoder, "tokenizer": tokenizer(),
    }  # fmt: skip
    getattr(diffusers, tiny.pipeline)(**{**dict.fromkeys(required_parts(tiny)), **parts, **tiny.index}).save_pretrained(folder / "model")
    return folder / "model"


def _width(family: str) -> int:
    return 3 * WIDTH if family.startswith("flux2") else WIDTH
