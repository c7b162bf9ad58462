"""Convert a text encoder's tokenizer to one portable file, and check it against the tokenizer that the pipeline would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import MissingBackendError, PtqdError, UsageError

FILES = ("tokenizer.json", "vocab.json")
"""The file of a fast tokenizer, or of a slow one (beside merges.txt), which transformers converts."""

HARD_PROMPTS = (
    "",
    "a photo of a cat",
    "  A  Photo\tof\n a CAT  ",
    "it's 1984, isn't it? we'll see: (a:1.2), [b], {c} & <d>!!! ... ???",
    "cafe\u0301 caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul",
    "\u732b \u306e \u5199\u771f, \u0444\u043e\u0442\u043e, \U0001f431\u200d\U0001f464",
    "<|startoftext|> inside <|endoftext|> out",
    "a\u00a0b\u3000c\u2014d",
    "word " * 100,
    "supercalifragilisticexpialidocious" * 20,
)
"""Prompts on which tokenizers have disagreed: the empty prompt, case and spaces, contractions, composed and decomposed letters, scripts
without spaces between words, special tokens as text, unusual spaces, and prompts that are too long."""


def portable_tokenizer(folder: Path) -> Any:
    """Return a folder's `tokenizers.Tokenizer`. It truncates and pads to the length, and with the token, in the folder's settings.

    Raises:
        UsageError: the folder contains no tokenizer.
        MissingBackendError: transformers is not installed.
        PtqdError: the token ids differ from those of transformers' tokenizer.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise UsageError("The model has no tokenizer.", found=f"no {' or '.join(FILES)} in {folder}", mend="copy the whole model folder")
    from tokenizers import Tokenizer

    reference = _reference(folder)
    portable = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    portable.enable_truncation(reference.model_max_length)
    portable.enable_padding(length=reference.model_max_length, pad_id=reference.pad_token_id, pad_token=reference.pad_token)
    _prove(portable, reference)
    return portable


def _reference(folder: Path) -> Any:
    try:
        from transformers import CLIPTokenizerFast
    except ImportError as error:
        raise MissingBackendError("Text models need transformers.", found=str(error), mend="pip install transformers") from error
    try:
        return CLIPTokenizerFast.from_pretrained(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise PtqdError("The model's tokenizer cannot be read.", found=f"{folder}: {error}", mend="copy the whole model folder") from error


def _prove(portable: Any, reference: Any) -> None:
    expected = reference(list(HARD_PROMPTS), padding="max_length", max_length=reference.model_max_length, truncation=True).input_ids
    for prompt, ids, encoding in zip(HARD_PROMPTS, expected, portable.encode_batch(list(HARD_PROMPTS)), strict=True):
        if encoding.ids != ids:
            raise PtqdError(
                "The portable tokenizer's tokens differ from those of the model's own.",
                found=f"{prompt!r}: {encoding.ids}",
                expected=ids,
                mend="report this model: its tokenizer is not supported",
            )
