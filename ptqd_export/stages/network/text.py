"""Stage `text`: traces text encoders to graphs, verifies them against torch, and saves their tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engines.arrays import Int64
from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.bundle.manifest import TextRecord
from engines.networks.prompts import TOKEN_IDS
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import check_outputs, trace_module
from ptqd_export.models.text.prompts import PromptEncoder
from ptqd_export.models.text.text_encoders import TextEncoderModule
from ptqd_export.stages.reporter import Reporter, each

RECORD = "text.json"
PROOF = ("", "a photo of a cat", "three words more")


def make_text(prompts: PromptEncoder, folder: Path, reporter: Reporter) -> None:
    """Write a graph and a tokenizer for every text encoder, under their names in the bundle, and `text.json`.

    Raises:
        PtqdError: a graph does not compute what torch computes.
    """
    text = prompts.load()
    record = text.record
    on_encoder = each(reporter, len(record.encoders))
    for one, module, tokenizer in zip(record.encoders, text.modules, text.tokenizers, strict=True):
        (folder / one.graph).parent.mkdir(exist_ok=True)
        tokenizer.save(str(folder / one.tokenizer))
        ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(list(PROOF))], dtype=np.int64)
        save_graph(trace_module(module, {TOKEN_IDS: torch.from_numpy(ids[:2])}, "network.", one.inputs), folder / one.graph)
        _check(module, folder / one.graph, ids)
        on_encoder()
    (folder / RECORD).write_text(record.model_dump_json())


def text_record(folder: Path | None) -> TextRecord | None:
    """Read the record that `make_text` wrote."""
    return None if folder is None else TextRecord.model_validate_json((folder / RECORD).read_text())


def _check(module: TextEncoderModule, graph: Path, ids: Int64) -> None:
    found, expected = run_outputs(graph, {TOKEN_IDS: ids}), module.encode(ids)
    for name, value in expected.items():
        check_outputs(found[name], value, f"{graph.name}, {name}")
