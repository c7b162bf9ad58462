"""Stage `text`: traces text encoders to graphs, verifies them against torch, and saves their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.bundle.manifest import TextRecord
from engines.errors import PtqdError
from engines.networks.prompts import BATCH, TOKEN_IDS, TOKEN_MASK, GraphEncoder
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.weight_only import WeightOnly, round_weights
from ptqd_export.graph.trace import check_outputs, trace_module
from ptqd_export.models.text.prompts import PromptEncoder
from ptqd_export.models.text.text_encoders import TextEncoderModule
from ptqd_export.models.text.text_use import TextUse
from ptqd_export.stages.reporter import Reporter, each

RECORD = "text.json"
LARGE = 500_000_000
"""Parameters above which the weights of a text encoder are stored in 8 bits."""

LEAST_COSINE = 0.99
"""Least cosine between an output with weights in 8 bits and the one in float, over all values of a prompt."""

SMALLEST = 1e-30

PROOF = ("", "a photo of a cat", "three words more")


def make_text(prompts: PromptEncoder, texts: Sequence[str], folder: Path, reporter: Reporter) -> None:
    """Write a graph and a tokenizer for every text encoder, under their names in the bundle, and `text.json`.

    Args:
        prompts: the text encoders, which are loaded, traced and freed one after the other.
        texts: prompts on which an encoder with weights in 8 bits is compared with the one in float.
        folder: folder to write to.
        reporter: receives progress, one unit per encoder.

    Raises:
        PtqdError: a graph does not compute what torch computes, or 8 bits change an encoder's output too much.
    """
    text = prompts.load()
    record = text.record
    on_encoder = each(reporter, len(record.encoders))
    for one, use, tokenizer in zip(record.encoders, prompts.uses, text.tokenizers, strict=True):
        (folder / one.graph).parent.mkdir(exist_ok=True)
        tokenizer.save(str(folder / one.tokenizer))
        proof, compared = (_feeds(tokenizer, use, some) for some in (PROOF, texts[:BATCH]))
        _write_graph(prompts.module(use), proof, compared, folder / one.graph)
        on_encoder()
    (folder / RECORD).write_text(record.model_dump_json())


def _feeds(tokenizer: Any, use: TextUse, texts: Sequence[str]) -> dict[str, Int64]:
    """Return the inputs of an encoder's graph for prompts."""
    encodings = tokenizer.encode_batch([text.lower().strip() if use.lowercase else text for text in texts])
    feeds = {TOKEN_IDS: np.array([encoding.ids for encoding in encodings], dtype=np.int64)}
    if use.takes_mask:
        feeds[TOKEN_MASK] = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return feeds


def _write_graph(module: TextEncoderModule, proof: Mapping[str, Int64], compared: Mapping[str, Int64], path: Path) -> None:
    """Write the graph of an encoder; that of a large one with weights in 8 bits. Its weights are rounded in place."""
    large = sum(parameter.numel() for parameter in module.parameters()) > LARGE
    exact = module.encode(*compared.values()) if large else {}
    if large:
        round_weights(module)
    inputs = {name: torch.from_numpy(value[:2]) for name, value in proof.items()}
    graph = trace_module(module, inputs, "network.", module.inputs)
    if large:
        WeightOnly()(graph)
    save_graph(graph, path)
    encoder = GraphEncoder(path, module.inputs)
    found, expected = encoder(*proof.values()), module.encode(*proof.values())
    for name, value in expected.items():
        check_outputs(found[name], value, f"{path.name}, {name}")
    if large:
        _check_cosines(encoder(*compared.values()), exact, path)


def _check_cosines(found: Mapping[str, Float32], exact: Mapping[str, Float32], path: Path) -> None:
    """Refuse an encoder whose output for any prompt 8 bits turn too far."""
    cosines = {name: float(_cosines(found[name], value).min()) for name, value in exact.items()}
    if not min(cosines.values()) >= LEAST_COSINE:
        raise PtqdError(
            "Weights in 8 bits change this text encoder too much.",
            found=f"{path.stem}: " + ", ".join(f"a cosine of {cosine:.4f} for {name}" for name, cosine in cosines.items()),
            expected=f"at least {LEAST_COSINE} for every prompt of the plan",
            mend="prepare embeddings with the model's own pipeline, and name them as model.conditions instead of model.prompts",
        )


def _cosines(found: Float32, exact: Float32) -> NDArray[np.float64]:
    """Return the cosine [rows] of the angle between the values of each row."""
    a, b = (value.reshape(len(value), -1).astype(np.float64) for value in (found, exact))
    return np.asarray((a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), SMALLEST))


def text_record(folder: Path | None) -> TextRecord | None:
    """Read the record that `make_text` wrote."""
    return None if folder is None else TextRecord.model_validate_json((folder / RECORD).read_text())
