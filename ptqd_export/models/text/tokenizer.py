"""Convert a text encoder's tokenizer to one portable file, and check it against the tokenizer that the pipeline would use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


SHORTEST = 3
"""Least length of a prompt: the token at its start, one of its own, and the token at its end."""


@dataclass(frozen=True)
class TokenLimits:
    """What a text encoder can take.

    Attributes:
        tokens: most tokens of a prompt.
        vocabulary: number of token ids.
    """

    tokens: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TokenLimits:
        """Read the configuration of a CLIP text model."""
        return cls(config["max_position_embeddings"], config["vocab_size"])


def portable_tokenizer(folder: Path, limits: TokenLimits) -> Any:
    """Return a folder's `tokenizers.Tokenizer`. It truncates and pads to the length, and with the token, in the folder's settings.

    Raises:
        UsageError: the folder contains no tokenizer, or one that does not fit the encoder.
        MissingBackendError: transformers is not installed.
        PtqdError: the tokenizer cannot be read or fails, or its token ids differ from those of transformers' tokenizer.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise UsageError("The model has no tokenizer.", found=f"no {' or '.join(FILES)} in {folder}", mend="copy the whole model folder")
    from tokenizers import Tokenizer

    reference = _reference(folder)
    portable = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    _check(folder, reference, portable, limits)
    portable.enable_truncation(reference.model_max_length)
    portable.enable_padding(length=reference.model_max_length, pad_id=reference.pad_token_id, pad_token=reference.pad_token)
    try:
        _prove(portable, reference)
    except PtqdError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise PtqdError("The model's tokenizer fails.", found=f"{folder}: {error}", mend="copy the whole model folder") from error
    return portable


def _check(folder: Path, reference: Any, portable: Any, limits: TokenLimits) -> None:
    """Refuse settings that the encoder, or the tokenizer itself, fails with.

    Raises:
        UsageError: there is such a setting.
    """
    length, largest = reference.model_max_length, max(portable.get_vocab().values(), default=0)
    unknown = portable.model.unk_token
    known = portable.get_vocab(with_added_tokens=False)
    checks = (
        (
            isinstance(length, int) and SHORTEST <= length <= limits.tokens,
            f"model_max_length {_number(length)}",
            f"a whole number from {SHORTEST} to {limits.tokens}, the positions of the text encoder",
        ),
        (reference.pad_token_id is not None, f"pad_token {reference.pad_token}", "a token of the vocabulary"),
        (unknown is None or unknown in known, f"unk_token {unknown}", "a token of the vocabulary"),
        (
            largest < limits.vocabulary,
            f"the token {portable.id_to_token(largest)} with the id {largest}",
            f"ids below {limits.vocabulary}, the vocabulary of the text encoder",
        ),
    )
    for fits, found, expected in checks:
        if not fits:
            raise UsageError(
                "The model's tokenizer does not fit its text encoder.",
                found=f"{folder}: {found}",
                expected=expected,
                mend="correct tokenizer_config.json, or copy the tokenizer that the model was trained with",
            )


def _number(length: object) -> str:
    """Write a length; transformers has one of 31 digits for a tokenizer that does not say."""
    return "missing" if isinstance(length, int) and length > 10**20 else repr(length)


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
