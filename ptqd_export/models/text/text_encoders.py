"""The CLIP text encoders of Stable Diffusion pipelines: find them, load them, and name their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engines.arrays import Float32, Int64
from engines.errors import MissingBackendError, UsageError
from ptqd_export.models.conditions import EMBEDDINGS, POOLED
from ptqd_export.models.diffusers_folder import DiffusersFolder, read_config
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import TRANSFORMERS
from ptqd_export.models.text.tokenizer import TokenLimits, portable_tokenizer

ENCODERS: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Folders of the text encoders and of their tokenizers, in the order in which the hidden states are concatenated."""

KINDS = ("CLIPTextModel", "CLIPTextModelWithProjection")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

Layer = Literal["last", "penultimate"]


class TextEncoderModule(nn.Module):
    """Maps token ids int64 [B, tokens] to hidden states [B, tokens, dim] and, if `pooled`, projected pooled embeddings [B, dim].

    Args:
        network: a CLIPTextModel, with or without projection.
        layer: `last` takes the hidden states after the final normalization, `penultimate` those before the last layer.
        pooled: also return the pooled embeddings; needs a network with projection.
    """

    def __init__(self, network: nn.Module, layer: Layer, *, pooled: bool) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.layer = layer
        self.pooled = pooled

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        out = self.network(input_ids=ids, output_hidden_states=True)
        hidden = out.last_hidden_state if self.layer == "last" else out.hidden_states[-2]
        return (hidden, out.text_embeds) if self.pooled else (hidden,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the conditioning inputs, in the order of the outputs."""
        return (EMBEDDINGS, POOLED) if self.pooled else (EMBEDDINGS,)

    @torch.no_grad()
    def encode(self, ids: Int64) -> dict[str, Float32]:
        """See `engines.networks.prompts.TextEncoder`."""
        return {name: value.numpy() for name, value in zip(self.inputs, self(torch.from_numpy(ids)), strict=True)}


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

    def load_tokenizer(self) -> Any:
        """Load the tokenizer. Raises what `portable_tokenizer` raises, and a UsageError if the pipeline uses one of another class."""
        index, settings = DiffusersFolder(self.model).index, self.tokenizer / "tokenizer_config.json"
        used = None if index is None else index.get(self.tokenizer.name)
        kind = used[-1] if isinstance(used, list) and used else read_config(settings).get("tokenizer_class") if settings.is_file() else None
        if kind is not None and kind not in TOKENIZERS:
            raise UsageError(
                "This tokenizer is not supported.",
                found=f"{self.tokenizer}: {kind}",
                expected=" or ".join(TOKENIZERS),
                mend="prepare embeddings yourself, and name them as model.conditions instead of model.prompts",
            )
        return portable_tokenizer(self.tokenizer, TokenLimits.of(read_config(self.encoder / "config.json")))

    def load(self, layer: Layer) -> TextEncoderModule:
        """Load the encoder in float32.

        Raises:
            UsageError: the encoder's kind is not supported, or it has no weights; see `load_module`.
            MissingBackendError: transformers is not installed.
            PtqdError: the weights cannot be read, or do not fit the configuration.
        """
        config = read_config(self.encoder / "config.json")
        kind = _kind(self.encoder, config)
        return TextEncoderModule(_load(self.encoder, kind), layer, pooled=layer == "penultimate" and kind == KINDS[1])


def find_text_folders(model: Path) -> tuple[TextFolders, ...]:
    """Return the text encoders in a pipeline's folder; none if the model takes no text."""
    parts = DiffusersFolder(model).parts
    return tuple(TextFolders(model, name) for name in ENCODERS if name in parts)


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    kind = (config.get("architectures") or [""])[0]
    if kind not in KINDS or config.get("use_attention_mask"):
        raise UsageError(
            "This text encoder is not supported.",
            found=f"{folder}: {kind}" + (" with use_attention_mask" if config.get("use_attention_mask") else ""),
            expected=" or ".join(KINDS),
            mend="prepare embeddings yourself, and name them as model.conditions instead of model.prompts",
        )
    return str(kind)


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
