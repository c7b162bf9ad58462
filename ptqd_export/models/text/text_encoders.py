"""The text encoders of pipelines: find them, load them, and name their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.arrays import Float32, Int64
from engines.errors import MissingBackendError, UsageError
from ptqd_export.models.diffusers_folder import DiffusersFolder, read_config
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import TRANSFORMERS
from ptqd_export.models.text.text_use import CLIP, CLIP_PROJECTED, DECODERS, GEMMA2, MISTRAL3, QWEN3, QWEN_VL, T5, UMT5, Output, TextUse
from ptqd_export.models.text.tokenizer import (
    CLIP_TOKENIZER,
    GEMMA_TOKENIZER,
    LLAMA_TOKENIZER,
    MISTRAL_TOKENIZER,
    QWEN_TOKENIZER,
    T5_TOKENIZER,
    PortableTokenizer,
    TokenizerKind,
    TokenLimits,
    portable_tokenizer,
)

ENCODERS: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
"""Folders of the text encoders and of their tokenizers."""

TOKENIZERS: Mapping[str, TokenizerKind] = {
    CLIP: CLIP_TOKENIZER,
    CLIP_PROJECTED: CLIP_TOKENIZER,
    T5: T5_TOKENIZER,
    UMT5: LLAMA_TOKENIZER,
    **dict.fromkeys(GEMMA2, GEMMA_TOKENIZER),
    **dict.fromkeys((*QWEN3, QWEN_VL), QWEN_TOKENIZER),
    MISTRAL3: MISTRAL_TOKENIZER,
}
"""The kind of tokenizer of each class of text encoders."""


def read_output(out: Any, wanted: Output) -> Tensor:
    """Return what an encoder gives from transformers' output."""
    if isinstance(wanted, tuple):
        return torch.cat([out.hidden_states[layer] for layer in wanted], dim=-1)
    found: Tensor = getattr(out, {"last": "last_hidden_state", "pooled": "pooler_output", "projected": "text_embeds"}[wanted])
    return found


class TextEncoderModule(nn.Module):
    """Maps token ids int64 [B, tokens] and, if the use takes it, their mask int64 [B, tokens] to what the use says.

    Args:
        network: a text encoder of transformers.
        use: how the pipeline uses it.
    """

    def __init__(self, network: nn.Module, use: TextUse) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.use = use

    @property
    def encoder(self) -> Any:
        """The part of the network that is used."""
        network: Any = self.network
        return network.get_decoder() if self._decodes else network

    @property
    def _decodes(self) -> bool:
        return type(self.network).__name__ in DECODERS

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        asked: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        if self._decodes:
            asked["use_cache"] = False
        gives = tuple(self.use.gives.values())
        out = self.encoder(input_ids=ids, output_hidden_states=any(isinstance(one, tuple) for one in gives), **asked)
        values = tuple(read_output(out, one) for one in gives)
        if mask is None or not self.use.clears_padding:
            return values
        return tuple(value * mask[:, :, None].to(value.dtype) for value in values)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the conditioning inputs, in the order of the outputs."""
        return tuple(self.use.gives)

    @torch.no_grad()
    def encode(self, ids: Int64, /, *mask: Int64) -> dict[str, Float32]:
        """See `engines.networks.prompts.TextEncoder`."""
        values = self(*(torch.from_numpy(one) for one in (ids, *mask)))
        return {name: value.numpy() for name, value in zip(self.inputs, values, strict=True)}


@dataclass(frozen=True)
class TextFolders:
    """The folders of one text encoder in a pipeline.

    Attributes:
        model: folder of the pipeline.
        name: name of the encoder's folder.
    """

    model: Path
    name: str

    @property
    def encoder(self) -> Path:
        return self.model / self.name

    @property
    def tokenizer(self) -> Path:
        return self.model / ENCODERS[self.name]

    @property
    def config(self) -> Mapping[str, Any]:
        return read_config(self.encoder / "config.json")

    def load_tokenizer(self, use: TextUse) -> PortableTokenizer:
        """Load the tokenizer. Raises what `portable_tokenizer` raises, and a UsageError if the pipeline uses one of another class."""
        index, settings = DiffusersFolder(self.model).index, self.tokenizer / "tokenizer_config.json"
        used = None if index is None else index.get(self.tokenizer.name)
        name = used[-1] if isinstance(used, list) and used else read_config(settings).get("tokenizer_class") if settings.is_file() else None
        kind = TOKENIZERS[self.kind(use)]
        if name is not None and name not in kind.names:
            raise UsageError(
                "This tokenizer is not supported.",
                found=f"{self.tokenizer}: {name}",
                expected=" or ".join(kind.names),
                mend="prepare embeddings yourself, and name them as model.conditions instead of model.prompts",
            )
        return portable_tokenizer(self.tokenizer, TokenLimits.of(self.config), kind, use.tokens, use.forms, use.padding_side)

    def load(self, use: TextUse) -> TextEncoderModule:
        """Load the encoder in float32.

        Raises:
            UsageError: the encoder's kind is not supported, or it has no weights; see `load_module`.
            MissingBackendError: transformers is not installed.
            PtqdError: the weights cannot be read, or do not fit the configuration.
        """
        return TextEncoderModule(_load(self.encoder, self.kind(use)), use)

    def load_network(self) -> nn.Module:
        """Load the encoder itself, however it is used. Raises what `load` raises."""
        return self.load(TextUse(self.name, {}, kinds=tuple(TOKENIZERS))).network

    def kind(self, use: TextUse) -> str:
        """Return the class name of the encoder.

        Raises:
            UsageError: the pipeline cannot use this class as stated.
        """
        config = self.config
        kind, masked = (config.get("architectures") or [""])[0], config.get("use_attention_mask")
        if kind not in use.kinds or masked:
            raise UsageError(
                "This text encoder is not supported.",
                found=f"{self.encoder}: {kind}" + (" with use_attention_mask" if masked else ""),
                expected=" or ".join(use.kinds),
                mend="prepare embeddings yourself, and name them as model.conditions instead of model.prompts",
            )
        return str(kind)


def find_text_folders(model: Path) -> tuple[TextFolders, ...]:
    """Return the text encoders in a pipeline's folder; none if the model takes no text."""
    parts = DiffusersFolder(model).parts
    return tuple(TextFolders(model, name) for name in ENCODERS if name in parts)


def _load(folder: Path, kind: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise MissingBackendError("Text models need transformers.", found=str(error), mend="pip install transformers") from error
    with no_progress_bar():
        return load_module(getattr(transformers, kind), folder, TRANSFORMERS, torch_dtype=torch.float32)


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Turn off transformers' progress bar, which appears wherever the output goes. This project draws its own, on terminals only."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
