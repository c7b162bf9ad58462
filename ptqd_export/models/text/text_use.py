"""How a pipeline uses one of its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Output = Literal["last", "penultimate", "pooled", "projected"]
"""What an encoder gives: `last` are the hidden states after the final normalization [batch, tokens, width], `penultimate` those before the
last layer; `pooled` is the last hidden state of the token that ends the prompt [batch, width], `projected` the projection of that state.
"""

CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
"""Class names of text encoders in transformers."""


@dataclass(frozen=True)
class TextUse:
    """How a pipeline uses one of its text encoders.

    Attributes:
        folder: folder of the encoder in the pipeline.
        gives: what feeds each conditioning input, by the input's name.
        kinds: class names that the encoder may have.
        tokens: length that prompts are padded and cut to; None takes the tokenizer's own.
        takes_mask: whether the encoder is given the mask of the prompt's own tokens.
        mask_input: conditioning input that is this mask, or None.
        joins: where its hidden states go beside those of the encoders before it: along the width, or behind their tokens.
        lowercase: whether prompts are written in small letters, without blanks at their ends, first.
        optional: whether zeros take the place of an encoder that the pipeline was saved without.
        note: what the user should know about prompts before a build; empty if there is nothing.
    """

    folder: str
    gives: Mapping[str, Output]
    kinds: tuple[str, ...] = (CLIP, CLIP_PROJECTED)
    tokens: int | None = None
    takes_mask: bool = False
    mask_input: str | None = None
    joins: Literal["beside", "behind"] = "beside"
    lowercase: bool = False
    optional: bool = False
    note: str = ""
