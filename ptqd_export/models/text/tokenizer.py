"""A text encoder's tokenizer as one portable file, proven against the one that the pipeline would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import MissingBackendError, PtqdError, UsageError

FILES = ("tokenizer.json", "vocab.json")
"""A fast tokenizer's file, or (beside merges.txt) a slow one's, which transformers converts."""

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
"""What tokenizers have disagreed on: nothing at all, case and blanks, contractions, composed and decomposed letters, scripts that
set no words apart, special tokens as text, unusual blanks, and more than fits."""


def portable_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder; it truncates and pads by itself, to the length and with the token of the folder's settings.

    Raises:
        UsageError: the folder holds no tokenizer.
        MissingBackendError: transformers is not installed.
        PtqdError: its token ids are not those of transformers' tokenizer.
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
                "The portable tokenizer gives other tokens than the model's own.",
                found=f"{prompt!r}: {encoding.ids}",
                expected=ids,
                mend="report this model: its tokenizer is not supported",
            )
