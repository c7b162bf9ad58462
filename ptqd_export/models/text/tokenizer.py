"""Convert a text encoder's tokenizer to one portable file, and check it against the tokenizer that the pipeline would use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engines.bundle.manifest import PromptForm
from engines.errors import MissingBackendError, PtqdError, UsageError
from ptqd_export.models.text.prompt_forms import FormMaker, PromptForms, plain


@dataclass(frozen=True)
class TokenizerKind:
    """A kind of tokenizer.

    Attributes:
        names: class names in transformers, the one that is loaded last.
        files: the file of a fast tokenizer, or of a slow one, which transformers converts.
        needs: packages that transformers needs to convert the slow one.
        shortest: least length of a prompt: the tokens at its ends, and one of its own.
    """

    names: tuple[str, ...]
    files: tuple[str, str]
    needs: tuple[str, ...]
    shortest: int


CLIP_TOKENIZER = TokenizerKind(("CLIPTokenizer", "CLIPTokenizerFast"), ("tokenizer.json", "vocab.json"), (), 3)
T5_TOKENIZER = TokenizerKind(
    ("T5Tokenizer", "T5TokenizerFast"), ("tokenizer.json", "spiece.model"), ("sentencepiece", "google.protobuf"), 2
)

GEMMA_TOKENIZER = TokenizerKind(
    ("GemmaTokenizer", "GemmaTokenizerFast"), ("tokenizer.json", "tokenizer.model"), ("sentencepiece", "google.protobuf"), 2
)
LLAMA_TOKENIZER = TokenizerKind(
    ("LlamaTokenizer", "LlamaTokenizerFast"), ("tokenizer.json", "tokenizer.model"), ("sentencepiece", "google.protobuf"), 2
)
MISTRAL_TOKENIZER = TokenizerKind(
    ("PixtralProcessor", "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer"),
    ("tokenizer.json", "tokenizer.model"), ("sentencepiece", "google.protobuf"), 2,
)  # fmt: skip
"""Mistral's, which transformers finds by the folder's settings, as the processor of pictures and texts around it does."""

QWEN_TOKENIZER = TokenizerKind(("Qwen2Tokenizer", "Qwen2TokenizerFast"), ("tokenizer.json", "vocab.json"), (), 2)

HARD_PROMPTS = (
    "",
    "a photo of a cat",
    "  A  Photo\tof\n a CAT  ",
    "it's 1984, isn't it? we'll see: (a:1.2), [b], {c} & <d>!!! ... ???",
    "cafe\u0301 caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul",
    "\u732b \u306e \u5199\u771f, \u0444\u043e\u0442\u043e, \U0001f431\u200d\U0001f464",
    "<|startoftext|> inside <|endoftext|> out",
    "a </s> b <pad> c <unk> d <extra_id_0> \u2581e",
    "a\u00a0b\u3000c\u2014d",
    "word " * 700,
    "supercalifragilisticexpialidocious" * 20,
)
"""Prompts on which tokenizers have disagreed: the empty prompt, case and spaces, contractions, composed and decomposed letters, scripts
without spaces between words, special tokens as text, unusual spaces, and prompts that are too long."""


@dataclass(frozen=True)
class TokenLimits:
    """What a text encoder can take.

    Attributes:
        tokens: most tokens of a prompt; None if there is no limit, because the encoder knows the distances between tokens alone.
        vocabulary: number of token ids.
    """

    tokens: int | None
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TokenLimits:
        """Read the configuration of a text encoder, or that of the part that reads text."""
        config = config.get("text_config") or config
        return cls(config.get("max_position_embeddings"), config["vocab_size"])


@dataclass(frozen=True)
class PortableTokenizer:
    """A `tokenizers.Tokenizer` that pads and truncates to one length, and what stands around the prompts that it is given."""

    tokenizer: Any
    forms: PromptForms

    @property
    def length(self) -> int:
        return int(self.tokenizer.truncation["max_length"])


def portable_tokenizer(
    folder: Path,
    limits: TokenLimits,
    kind: TokenizerKind = CLIP_TOKENIZER,
    length: int | None = None,
    make_forms: FormMaker = plain,
    padding_side: str | None = None,
) -> PortableTokenizer:
    """Return a folder's tokenizer. It truncates and pads with the token in the folder's settings.

    Args:
        folder: folder of the tokenizer.
        limits: what the text encoder can take.
        kind: kind of the tokenizer.
        length: length that it truncates and pads to, beside the tokens that forms leave out; None takes the one in the settings.
        make_forms: makes what stands around prompts.
        padding_side: where it pads; None takes the side in the folder's settings.

    Raises:
        UsageError: the folder contains no tokenizer, or one that does not fit the encoder.
        MissingBackendError: transformers, or a package that it needs to convert the tokenizer, is not installed.
        PtqdError: the tokenizer cannot be read or fails, or its token ids differ from those of transformers' tokenizer.
    """
    if not any((folder / name).is_file() for name in kind.files):
        raise UsageError(
            "The model has no tokenizer.", found=f"no {' or '.join(kind.files)} in {folder}", mend="copy the whole model folder"
        )
    from tokenizers import Tokenizer

    reference = _reference(folder, kind)
    forms = _forms(folder, reference, make_forms, length)
    if length is not None:
        reference.model_max_length = length + forms.form.skips
    if padding_side is not None:
        reference.padding_side = padding_side
    portable = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    _check(folder, reference, portable, limits, kind.shortest)
    portable.enable_truncation(reference.model_max_length, direction=reference.truncation_side)
    portable.enable_padding(
        direction=reference.padding_side,
        length=reference.model_max_length,
        pad_id=reference.pad_token_id,
        pad_token=reference.pad_token,
    )
    with _naming(folder):
        _prove(portable, reference, forms.form, reference.model_max_length)
        if forms.null_form is not None:
            _prove(portable, reference, forms.null_form, forms.null_form.skipped[0])
    return PortableTokenizer(portable, forms)


def _forms(folder: Path, reference: Any, make_forms: FormMaker, length: int | None) -> PromptForms:
    if length is None:
        return PromptForms()
    with _naming(folder):
        return make_forms(reference, length)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Name the folder of a tokenizer that fails."""
    try:
        yield
    except PtqdError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise PtqdError("The model's tokenizer fails.", found=f"{folder}: {error}", mend="copy the whole model folder") from error


def _check(folder: Path, reference: Any, portable: Any, limits: TokenLimits, shortest: int) -> None:
    """Refuse settings that the encoder, or the tokenizer itself, fails with.

    Raises:
        UsageError: there is such a setting.
    """
    length, largest = reference.model_max_length, max(portable.get_vocab().values(), default=0)
    unknown = getattr(portable.model, "unk_token", None)
    known = portable.get_vocab(with_added_tokens=False)
    checks = (
        (
            isinstance(length, int) and shortest <= length <= (length if limits.tokens is None else limits.tokens),
            f"model_max_length {_number(length)}",
            f"a whole number from {shortest} to {limits.tokens}, the positions of the text encoder",
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


def _reference(folder: Path, kind: TokenizerKind = CLIP_TOKENIZER) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingBackendError("Text models need transformers.", found=str(error), mend="pip install transformers") from error
    if not (folder / kind.files[0]).is_file():
        _check_packages(folder / kind.files[1], kind.needs)
    try:
        FastTokenizer: Any = getattr(transformers, kind.names[-1])
        return FastTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises plain Exception
        raise PtqdError("The model's tokenizer cannot be read.", found=f"{folder}: {error}", mend="copy the whole model folder") from error


def _check_packages(file: Path, needed: Sequence[str]) -> None:
    """Refuse a slow tokenizer that transformers cannot convert here: without the packages it would take the file for another kind."""
    missing = [package for package in needed if not _is_installed(package)]
    if missing:
        raise MissingBackendError(
            f"To read {file.name}, transformers needs {' and '.join(missing)}.",
            found=f"{file} without {file.with_name('tokenizer.json').name} beside it",
            mend="pip install sentencepiece protobuf; or take a copy of the model with a tokenizer.json",
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _prove(portable: Any, reference: Any, form: PromptForm, length: int) -> None:
    """Compare token ids, and the masks that tell them from padding, on the hard prompts in a form. The pipeline takes `length` tokens."""
    texts = [f"{form.prefix}{prompt}{form.suffix}" for prompt in HARD_PROMPTS]
    expected = reference(texts, padding="max_length", max_length=length, truncation=True)
    found = portable.encode_batch(texts)
    for prompt, ids, mask, encoding in zip(HARD_PROMPTS, expected.input_ids, expected.attention_mask, found, strict=True):
        if (encoding.ids[:length], encoding.attention_mask[:length]) != (ids, mask):
            raise PtqdError(
                "The portable tokenizer's tokens differ from those of the model's own.",
                found=f"{prompt!r}: {encoding.ids}",
                expected=ids,
                mend="report this model: its tokenizer is not supported",
            )
