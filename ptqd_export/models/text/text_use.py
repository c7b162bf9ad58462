"""How a pipeline uses one of its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ptqd_export.models.text.prompt_forms import FormMaker, plain

Output: TypeAlias = Literal["last", "pooled", "projected"] | tuple[int, ...]
"""What an encoder gives: `last` are the hidden states after the final normalization [batch, tokens, width]; `pooled` is the last hidden
state of the token that ends the prompt [batch, width], `projected` the projection of that state. Numbers are those of layers, whose outputs
stand side by side [batch, tokens, layers * width]: 0 are the embeddings, and -1 is `last`.
"""

PENULTIMATE = (-2,)
"""The hidden states before the last layer."""

CLIP, CLIP_PROJECTED, T5, UMT5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"
GEMMA2 = ("Gemma2Model", "Gemma2ForCausalLM")
QWEN3 = ("Qwen3Model", "Qwen3ForCausalLM")
QWEN_VL, MISTRAL3 = "Qwen2_5_VLForConditionalGeneration", "Mistral3ForConditionalGeneration"
"""Class names of text encoders in transformers."""

DECODERS = frozenset({*GEMMA2, *QWEN3, QWEN_VL, MISTRAL3})
"""Those that write text otherwise. Only the part that reads is used, without what it would remember."""


@dataclass(frozen=True)
class TextUse:
    """How a pipeline uses one of its text encoders.

    Attributes:
        folder: folder of the encoder in the pipeline.
        gives: what feeds each conditioning input, by the input's name.
        kinds: class names that the encoder may have.
        tokens: length that prompts are padded and cut to, without the tokens that `forms` leave out; None takes the tokenizer's own.
        takes_mask: whether the encoder is given the mask of the prompt's own tokens.
        mask_input: conditioning input that is this mask, or None.
        mask_padding: number of padding tokens behind the prompt's own that this mask lets through too; they stand on the right.
        joins: where its hidden states go beside those of the encoders before it: along the width, or behind their tokens.
        lowercase: whether prompts are written in small letters, without blanks at their ends, first.
        forms: makes what stands around prompts.
        padding_side: where the pipeline pads, whatever its tokenizer says; None is the tokenizer's own side.
        clears_padding: whether what it gives for the tokens that the mask leaves out is zeros.
        optional: whether zeros take the place of an encoder that the pipeline was saved without.
        note: what the user should know about prompts before a build; empty if there is nothing.
    """

    folder: str
    gives: Mapping[str, Output]
    kinds: tuple[str, ...] = (CLIP, CLIP_PROJECTED)
    tokens: int | None = None
    takes_mask: bool = False
    mask_input: str | None = None
    mask_padding: int = 0
    joins: Literal["beside", "behind"] = "beside"
    lowercase: bool = False
    forms: FormMaker = plain
    padding_side: Literal["right"] | None = None
    clears_padding: bool = False
    optional: bool = False
    note: str = ""
