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
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.ptqd_export.models.tiny_transformers import TINY, first_stage, required_parts, spread

WIDTH, VOCABULARY = 24, 400
SENTENCES = ("a photo of the red cat", "the word of a dog, isn't it?", "caf\u00e9 in 1984 <person>", "watercolour of a lighthouse\n") * 4
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set tag = {'system': 'SYSTEM_PROMPT', 'user': 'INST'}[message.role] %}"
    "[{{ tag }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ tag }}]{% endfor %}"
)
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY + 50, "hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.3,
}  # fmt: skip
WIDTHS = ("caption_channels", "cap_feat_dim", "joint_attention_dim")
"""Keys of a transformer's configuration with the width of the embeddings that it takes."""

PROCESSOR = "PixtralProcessor"
"""Class of the tokenizer in the index of FLUX.2 dev."""


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


class ChatProcessor(transformers.ProcessorMixin):  # type: ignore[misc]  # transformers has no types
    """What FLUX.2 dev's pipeline calls of its processor. The real one differs in pictures alone, and needs torchvision for them."""

    text_kwargs: Mapping[str, Any] = {"return_tensors": "pt"}

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


def mistral_processor() -> Any:
    """Return a processor whose tokenizer of bytes begins a text with a token, as its chat template does, and pads on the left."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    split, alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()
    parts = _trained((*SENTENCES, SYSTEM_MESSAGE), special, split, VOCABULARY, alphabet)
    tokenizer = Tokenizer(models.BPE(**parts))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", padding_side="left",
        chat_template=MISTRAL_TEMPLATE, extra_special_tokens=special[4:],
    )  # fmt: skip
    return ChatProcessor(made, MISTRAL_TEMPLATE)


def read_processor(folder: Path) -> Any:
    """Return the processor that was saved to a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return ChatProcessor(tokenizer, tokenizer.chat_template)


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


def mistral3() -> Any:
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **SIZES, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": None},
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14, "head_dim": 8,
        },
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config)


PARTS: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "sana": (gemma_tokenizer, gemma2),
    "z-image": (qwen_tokenizer, lambda: qwen3("Qwen3Model", 3)),
    "auraflow": (llama_tokenizer, umt5),
    "flux2-dev": (mistral_processor, mistral3),
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
    if tiny.latents is not None:
        parts["vae"] = first_stage(tiny.latents)
    getattr(diffusers, tiny.pipeline)(**{**dict.fromkeys(required_parts(tiny)), **parts, **tiny.index}).save_pretrained(folder / "model")
    if isinstance(parts["tokenizer"], ChatProcessor):
        index = folder / "model" / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "tokenizer": ["transformers", PROCESSOR]}))
    return folder / "model"


def _width(family: str) -> int:
    return 3 * WIDTH if family.startswith("flux2") else WIDTH
