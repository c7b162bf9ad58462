"""Stage `text`: traces text encoders to graphs, verifies them against torch, and saves their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.bundle.manifest import TextEncoderRecord, TextRecord
from engines.errors import PtqdError
from engines.networks.prompts import BATCH, TOKEN_IDS, TOKEN_MASK, GraphEncoder, TextPart
from ptqd_export.graph.graph_files import save_graph, save_with_data
from ptqd_export.graph.passes.masked_rows import MaskedRows
from ptqd_export.graph.passes.weight_only import WeightOnly, round_weights
from ptqd_export.graph.trace import check_outputs, trace_module
from ptqd_export.models.text.prompts import PromptEncoder
from ptqd_export.models.text.text_encoders import TextEncoderModule
from ptqd_export.stages.reporter import Reporter, each

RECORD = "text.json"
LARGE = 500_000_000
"""Parameters above which the weights of a text encoder are stored in 8 bits, and beside its graph."""

LEAST_COSINE = 0.99
"""Least cosine between an output with weights in 8 bits and the one in float, over all values of a prompt."""

COSINE_DIGITS = 5
"""Digits of the least cosine in the record, so that it does not depend on the order of sums."""

SMALLEST = 1e-30

PROOF = ("", "a photo of a cat", "word " * 1000)
"""Prompts without a token of their own, with a few, and with more than any encoder takes."""


def make_text(prompts: PromptEncoder, texts: Sequence[str], folder: Path, reporter: Reporter, *, in_float: bool = False) -> None:
    """Write a graph and a tokenizer for every text encoder, under their names in the bundle, and `text.json`.

    Args:
        prompts: the text encoders, which are loaded, traced and freed one after the other.
        texts: prompts on which an encoder with weights in 8 bits is compared with the one in float.
        folder: folder to write to.
        reporter: receives progress, one unit per encoder.
        in_float: whether the weights of large encoders stay in float too.

    Raises:
        PtqdError: a graph does not compute what torch computes, or 8 bits change an encoder's output too much.
    """
    text = prompts.load()
    record = text.record
    on_encoder, encoders = each(reporter, len(record.encoders)), list[TextEncoderRecord]()
    for one, use, tokenizer in zip(record.encoders, prompts.uses, text.tokenizers, strict=True):
        (folder / one.graph).parent.mkdir(exist_ok=True)
        tokenizer.tokenizer.save(str(folder / one.tokenizer))
        cosine = _write_encoder(prompts.module(use), one, tokenizer.tokenizer, texts[:BATCH], folder / one.graph, in_float=in_float)
        encoders.append(one.model_copy(update={"least_cosine": cosine}))
        on_encoder()
    (folder / RECORD).write_text(record.model_copy(update={"encoders": tuple(encoders)}).model_dump_json())


def _write_encoder(
    module: TextEncoderModule, record: TextEncoderRecord, tokenizer: Any, texts: Sequence[str], path: Path, *, in_float: bool
) -> float | None:
    """Write the graph of an encoder; that of a large one with weights in 8 bits, unless they stay in float. They are rounded in place.

    Returns the least cosine that `_least_cosine` returns; None if the weights are in float.
    """
    part = TextPart.of(record, tokenizer, module.encode)
    proof, compared = (_feeds(part, some) for some in (PROOF, texts))
    large = not in_float and sum(parameter.numel() for parameter in module.parameters()) > LARGE
    exact = module.encode(*compared.values()) if large else {}
    if large:
        round_weights(module.encoder)
    graph = trace_module(module, {name: torch.from_numpy(value[:2]) for name, value in proof.items()}, "network.", module.inputs)
    MaskedRows()(graph)
    if large:
        WeightOnly()(graph)
    (save_with_data if large else save_graph)(graph, path)  # ONNX Runtime maps data files, and reads the rest into memory
    encoder = GraphEncoder(path, module.inputs)
    _check_batches(encoder, module, proof, path)
    return _least_cosine(encoder(*compared.values()), exact, path) if large else None


def _feeds(part: TextPart, texts: Sequence[str]) -> dict[str, Int64]:
    """Return the inputs of an encoder's graph for prompts."""
    ids, mask = (np.ascontiguousarray(one) for one in part.tokens(texts).swapaxes(0, 1))
    return {TOKEN_IDS: ids, TOKEN_MASK: mask} if part.takes_mask else {TOKEN_IDS: ids}


def _check_batches(encoder: GraphEncoder, module: TextEncoderModule, proof: Mapping[str, Int64], path: Path) -> None:
    """Refuse a graph that does not compute what torch computes, in batches of other sizes than it was traced with."""
    expected = module.encode(*proof.values())
    for batch in (1, len(PROOF)):
        found = encoder(*(value[-batch:] for value in proof.values()))
        for name, value in expected.items():
            check_outputs(found[name], value[-batch:], f"{path.name}, {name}")


def _least_cosine(found: Mapping[str, Float32], exact: Mapping[str, Float32], path: Path) -> float:
    """Return the least cosine of an output for any prompt to the one in float, and refuse an encoder that 8 bits turn too far."""
    cosines = {name: float(_cosines(found[name], value).min()) for name, value in exact.items()}
    if not min(cosines.values()) >= LEAST_COSINE:
        raise PtqdError(
            "Weights in 8 bits change this text encoder too much.",
            found=f"{path.stem}: " + ", ".join(f"a cosine of {cosine:.4f} for {name}" for name, cosine in cosines.items()),
            expected=f"at least {LEAST_COSINE} for every prompt of the plan",
            mend="set quantization.keep_float_encoders to true",
        )
    return round(min(cosines.values()), COSINE_DIGITS)


def _cosines(found: Float32, exact: Float32) -> NDArray[np.float64]:
    """Return the cosine [rows] of the angle between the values of each row."""
    a, b = (value.reshape(len(value), -1).astype(np.float64) for value in (found, exact))
    return np.asarray((a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), SMALLEST))


def text_record(folder: Path | None) -> TextRecord | None:
    """Read the record that `make_text` wrote."""
    return None if folder is None else TextRecord.model_validate_json((folder / RECORD).read_text())
