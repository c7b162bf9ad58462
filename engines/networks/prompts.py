"""Turn prompts into conditioning with the bundle's own tokenizers and text encoders, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.onnxruntime.onnxruntime_session import open_session
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import FixedValue, PromptForm, TextEncoderRecord, TextRecord
from engines.chain.finite import NotFiniteError, is_finite
from engines.errors import BundleError, MissingBackendError, PtqdError, UsageError
from engines.host.machine import cores
from engines.networks.conditioning import Conditioning
from engines.untrusted.external_data import graph_files
from engines.untrusted.plain_text import lines_of, read_text

TOKEN_IDS, TOKEN_MASK = "input_ids", "attention_mask"
"""Inputs of a text encoder's graph, int64 [batch, tokens]: the tokens and, if the graph takes it, 1 for those that are no padding. Its
outputs are named after the conditioning inputs that they feed."""

FLOAT_PRODUCTS: Mapping[str, str] = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Multiplies weights in 8 bits with activations in float; ONNX Runtime would round the activations to 8 bits too."""

LABEL_LETTERS = 28

PROMPTS_LIMIT = 16 * 2**20
"""Maximum bytes of a prompt file."""

BATCH = 16
"""Maximum number of texts per call of a text encoder."""

KEPT_BYTES = 2**31
"""Size of a graph with its weights up to which a text encoder stays open between calls."""


PLAIN = PromptForm()
"""A prompt by itself."""

TextEncoder: TypeAlias = Callable[..., dict[str, Float32]]
"""A text encoder: maps token ids int64 [batch, tokens] and, if it takes it, their mask to values [batch, ...] by conditioning input."""


@dataclass(frozen=True)
class TextPart:
    """One text encoder with its tokenizer.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer` that pads and truncates to one fixed length.
        encoder: called with batches of at most `BATCH` texts.
        takes_mask: whether the encoder takes the mask of the tokens.
        mask_input: conditioning input that is the mask of the tokens, or None.
        mask_padding: number of padding tokens behind the prompt's own that this mask lets through too.
        lowercase: whether texts are written in small letters, without blanks at their ends, first.
        form: what stands around a text, and the tokens that the network is not given.
        null_form: the same for the negative prompt.
        release: frees what the encoder holds between calls; None if it holds nothing.
    """

    tokenizer: Any
    encoder: TextEncoder
    takes_mask: bool = False
    mask_input: str | None = None
    mask_padding: int = 0
    lowercase: bool = False
    form: PromptForm = PLAIN
    null_form: PromptForm = PLAIN
    release: Callable[[], None] | None = None

    @classmethod
    def of(cls, record: TextEncoderRecord, tokenizer: Any, encoder: TextEncoder, release: Callable[[], None] | None = None) -> TextPart:
        """Return the encoder that a record describes."""
        form, null_form = record.form, record.null_form or record.form
        return cls(
            tokenizer, encoder, record.takes_mask, record.mask_input, record.mask_padding, record.lowercase, form, null_form, release
        )

    def encode(self, texts: Sequence[str], null: str | None = None) -> dict[str, NDArray[Any]]:
        """Return values [texts, ...] by conditioning input, behind those of a negative prompt. Equal tokens are encoded once."""
        forms = [*([] if null is None else [self.null_form]), *[self.form] * len(texts)]
        tokens = np.concatenate([*([] if null is None else [self.tokens([null], self.null_form)]), self.tokens(texts)])
        given, first = np.unique(tokens if self.takes_mask else tokens[:, :1], axis=0, return_inverse=True)
        inputs = [np.ascontiguousarray(one) for one in given.swapaxes(0, 1)]
        batches = [self.encoder(*(one[begin : begin + BATCH] for one in inputs)) for begin in range(0, len(given), BATCH)]
        values: dict[str, NDArray[Any]] = {name: np.concatenate([batch[name] for batch in batches])[first] for name in batches[0]}
        if self.mask_input is not None:
            values[self.mask_input] = _widened(tokens[:, 1], self.mask_padding)
        if not self.form.skips:
            return values
        by_token = {name for name, value in values.items() if value.ndim > 2 and value.shape[1] == tokens.shape[2]} | {self.mask_input}
        return {name: _kept(value, forms) if name in by_token else value for name, value in values.items()}

    def tokens(self, texts: Sequence[str], form: PromptForm | None = None) -> Int64:
        """Return token ids and masks [texts, 2, tokens] of texts in a form; None takes that of prompts."""
        encodings = self._encodings(texts, form or self.form)
        return np.array([(encoding.ids, encoding.attention_mask) for encoding in encodings], dtype=np.int64)

    def cut(self, texts: Sequence[str]) -> set[int]:
        """Return the indices of the texts that are too long for the encoder."""
        return {index for index, encoding in enumerate(self._encodings(texts, self.form)) if encoding.overflowing}

    def _expanded(self, text: str) -> str:
        if self.lowercase:
            text = text.lower().strip()
        for name, vectors in self._inversions.items():
            text = text.replace(name, vectors)
        return text

    @cached_property
    def _inversions(self) -> dict[str, str]:
        """Tokens of textual inversion with several vectors: as in diffusers, `<toy>` stands for `<toy> <toy>_1`, and so on."""
        added = [
            token.content for _, token in sorted(self.tokenizer.get_added_tokens_decoder().items())
        ]  # replaced in the order of their ids
        return {name: " ".join(_vectors(name, added)) for name in added if f"{name}_1" in added}

    def _encodings(self, texts: Sequence[str], form: PromptForm) -> list[Any]:
        try:
            return list(self.tokenizer.encode_batch([f"{form.prefix}{self._expanded(text)}{form.suffix}" for text in texts]))
        except Exception as error:  # tokenizers raises plain Exception
            raise PtqdError(
                "The model's tokenizer fails on a prompt.",
                found=f"{error}",
                expected="a tokenizer that knows every character, or has a token for unknown ones in its vocabulary",
                mend="build the bundle again from a model with a complete tokenizer",
            ) from error


def _widened(masks: Int64, padding: int) -> Int64:
    """Return masks [texts, tokens], extended by `padding` tokens behind each text's own."""
    if not padding:
        return masks  # may be padded on the left
    within: NDArray[np.bool_] = np.arange(masks.shape[1]) < masks.sum(axis=1, keepdims=True) + padding
    return within.astype(np.int64)


def _kept(values: NDArray[Any], forms: Sequence[PromptForm]) -> NDArray[Any]:
    """Return values [texts, tokens, ...] without the tokens that each text's form skips."""
    places = np.array([np.delete(np.arange(values.shape[1]), slice(*form.skipped)) for form in forms])
    kept: NDArray[Any] = values[np.arange(len(values))[:, np.newaxis], places]
    return kept


def _vectors(name: str, added: Container[str]) -> Iterator[str]:
    yield name
    yield from takewhile(added.__contains__, (f"{name}_{number}" for number in count(1)))


@dataclass(frozen=True)
class TextModel:
    """All text encoders of a model.

    Attributes:
        record: the manifest's record of the text encoders.
        parts: the encoders, in the record's order.
    """

    record: TextRecord
    parts: tuple[TextPart, ...]

    def condition(self, prompts: Sequence[str], negative: str | None = None) -> Conditioning:
        """Return conditioning with one row per prompt and the negative prompt as its null values.

        Args:
            prompts: at least one prompt.
            negative: negative prompt; None uses the model's default: the empty prompt, or zeros.
        """
        tables = self._encode(prompts, negative or "")
        zeroed = negative is None and self.record.zero_without_negative
        null = {name: np.zeros_like(table[0]) if zeroed else table[0] for name, table in tables.items()}
        fixed, null_fixed = (_arrays(values) for values in (self.record.fixed, self.record.fixed | self.record.null_fixed))
        repeated = {name: np.repeat(value[np.newaxis], len(prompts), axis=0) for name, value in fixed.items()}
        return Conditioning({name: table[1:] for name, table in tables.items()} | repeated, null | null_fixed)

    def cut(self, prompts: Sequence[str]) -> tuple[int, ...]:
        """Return the sorted indices of the prompts that are too long, whose end is cut off."""
        return tuple(sorted(set.union(*(part.cut(prompts) for part in self.parts))))

    def _encode(self, texts: Sequence[str], null: str) -> dict[str, NDArray[Any]]:
        """Return values by conditioning input, those of the negative prompt first.

        The encoders run one after the other, and each frees its memory before the next opens.
        """
        values: dict[str, list[list[NDArray[Any]]]] = {}
        for record, part in zip(self.record.encoders, self.parts, strict=True):
            for name, value in part.encode(texts, null).items():
                groups = values.setdefault(name, [])
                if record.joins == "behind" or not groups:
                    groups.append([])
                groups[-1].append(value)
            if part.release is not None:
                part.release()
        return {name: joined(groups, self.record.padded.get(name)) for name, groups in values.items()}


def joined(groups: Sequence[Sequence[NDArray[Any]]], shape: Sequence[int] | None = None) -> NDArray[Any]:
    """Join what several encoders give for one conditioning input.

    Args:
        groups: values [texts, ..., width]. Those of one group stand beside each other, along the last axis; groups follow each other along
            the tokens [texts, tokens, width], narrow ones padded with zeros.
        shape: shape of a text's values, padded with zeros; None pads nothing.
    """
    wide = [np.concatenate(group, axis=-1) for group in groups]
    widest = max(one.shape[-1] for one in wide)
    out = np.concatenate([_padded(one, (*one.shape[1:-1], widest)) for one in wide], axis=1) if len(wide) > 1 else wide[0]
    return out if shape is None else _padded(out, shape)


def _padded(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Append zeros to values [texts, ...] until each text has a shape."""
    return np.pad(values, [(0, 0), *((0, size - found) for size, found in zip(shape, values.shape[1:], strict=True))])


def _arrays(values: Mapping[str, FixedValue]) -> dict[str, Float32]:
    return {name: np.array(numbers, dtype=np.float32) for name, numbers in values.items()}


@dataclass(frozen=True)
class GraphEncoder:
    """A text encoder's graph, opened on first use."""

    graph: Path
    outputs: tuple[str, ...]

    def __call__(self, ids: Int64, /, *mask: Int64) -> dict[str, Float32]:
        try:
            values: list[Float32] = self._session.run(list(self.outputs), dict(zip((TOKEN_IDS, TOKEN_MASK), (ids, *mask), strict=False)))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise PtqdError("A text encoder failed.", found=f"{self.graph}: {error}", mend="rebuild the bundle") from error
        if not all(is_finite(value) for value in values):
            raise NotFiniteError("A text encoder's output is not finite.", found=f"NaN or infinity from {self.graph}")
        return dict(zip(self.outputs, values, strict=True))

    def release(self) -> None:
        """Close the graph if it is large: the memory then serves the networks. The next call opens it again."""
        if sum(file.stat().st_size for file in graph_files(self.graph)) > KEPT_BYTES:
            self.__dict__.pop("_session", None)

    @cached_property
    def _session(self) -> Any:
        return open_session(self.graph, FLOAT_PRODUCTS, cores())


def open_text(bundle: Bundle) -> TextModel:
    """Open the text encoders of a bundle.

    Raises:
        UsageError: the bundle has no text encoders.
        MissingBackendError: tokenizers or ONNX Runtime is not installed.
        BundleError: a tokenizer is damaged.
    """
    record = text_record(bundle)
    return TextModel(record, tuple(_open_part(bundle, one) for one in record.encoders))


def text_record(bundle: Bundle) -> TextRecord:
    """Return the record of a bundle's text encoders.

    Raises:
        UsageError: the bundle has none.
    """
    record = bundle.manifest.model.text
    if record is None:
        raise UsageError(
            "The model takes no prompts.",
            found=f"a {bundle.manifest.model.family} bundle without text encoders",
            expected="a bundle that was built with model.prompts",
            mend="choose rows or classes with --classes, or rebuild with model.prompts in the plan",
        )
    return record


def _open_part(bundle: Bundle, record: TextEncoderRecord) -> TextPart:
    tokenizer = read_tokenizer(bundle.read(record.tokenizer), bundle.folder / record.tokenizer, record.tokens)
    encoder = GraphEncoder(bundle.graph(record.graph), record.inputs)
    return TextPart.of(record, tokenizer, encoder, encoder.release)


def read_tokenizer(content: bytes, path: Path, tokens: int) -> Any:
    """Load a `tokenizers.Tokenizer` from the content of a file.

    Args:
        content: content of the file.
        path: path of the file, for error messages.
        tokens: length that the tokenizer must pad and truncate to.

    Raises:
        MissingBackendError: tokenizers is not installed.
        BundleError: the file contains no tokenizer, or one that pads or truncates to another length.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingBackendError(
            "Prompts need the package tokenizers.", found=str(error), mend="pip install 'ptqd-export[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError("A tokenizer of the bundle cannot be read.", found=f"{path}: {error}", mend="rebuild the bundle") from error
    padding = tokenizer.padding or {}
    lengths = (padding.get("length"), (tokenizer.truncation or {}).get("max_length"), padding.get("pad_to_multiple_of"))
    if lengths != (tokens, tokens, None):
        raise BundleError(
            "A tokenizer of the bundle is not the one that the manifest describes.",
            found=f"{path}: pads to {lengths[0]}, truncates to {lengths[1]}, pads to multiples of {lengths[2]}",
            expected=f"{tokens} tokens",
            mend="rebuild the bundle",
        )
    return tokenizer


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read the prompts of a text file, one per line; blank lines are skipped.

    Raises:
        UsageError: the file cannot be read, or contains no prompt.
    """
    try:
        lines = lines_of(read_text(path, PROMPTS_LIMIT))
    except (OSError, ValueError) as error:
        raise UsageError("The prompt file cannot be read.", found=f"{path}: {error}", expected="UTF-8 text, one prompt per line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UsageError("The prompt file contains no prompt.", found=f"{path}: {len(lines)} blank lines", expected="one prompt per line")
    return prompts


def chosen_prompts(prompts: tuple[str, ...], file: Path | None) -> tuple[str, ...] | None:
    """Return the prompts given on the command line or in a file; None if there are none.

    Raises:
        UsageError: both are given, or the file contains no prompt.
    """
    if prompts and file is not None:
        raise UsageError("Prompts are given twice.", found="--prompt and --prompt-file", expected="only one of the two")
    return read_prompts(file) if file is not None else prompts or None


def shortened(prompt: str) -> str:
    """Shorten a prompt to a picture label."""
    line = " ".join(prompt.split())
    return line if len(line) <= LABEL_LETTERS else f"{line[: LABEL_LETTERS - 3].rstrip()}..."
