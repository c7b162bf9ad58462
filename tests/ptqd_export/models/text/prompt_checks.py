"""Text encoders as a bundle has them, without the rest of a build, and how their values are compared with a pipeline's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import TextRecord
from engines.networks.conditioning import Conditioning
from engines.networks.prompts import GraphEncoder, TextModel, TextPart, read_tokenizer
from ptqd_export.models.load import load_model
from ptqd_export.stages.network.text import make_text, text_record
from tests.ptqd_export.models.pipelines import GUIDANCE, plan_of
from tests.ptqd_export.models.text.tiny_decoders import PROCESSOR, read_processor
from tests.ptqd_export.stages.recorder import Recorder

Arrays = Mapping[str, NDArray[Any]]
PROMPTS = ("  A Photo of\tthe RED cat, \u732b ", "the word " * 300, "", "caf\u00e9 in 1984")
"""Capitals, blanks and a sign without a token; too long for every encoder; empty; plain."""

NEGATIVE = "The DOG "


@cache
def pipeline(folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pictures = index.get("tokenizer", [""])[-1] == PROCESSOR
    absent |= {"tokenizer": None} if pictures else {}
    found = diffusers.DiffusionPipeline.from_pretrained(folder, **absent, local_files_only=True)
    if pictures:
        found.register_modules(tokenizer=read_processor(folder / "tokenizer"))
    return found


def check(found: Conditioning, rows: Arrays, null: Arrays | None, tolerance: float) -> None:
    assert found.tables.keys() - {"guidance"} == rows.keys()
    for name, values in rows.items():
        assert found.tables[name].shape == values.shape
        np.testing.assert_allclose(found.tables[name], values, atol=tolerance, err_msg=name)
        assert np.abs(values[0].astype(float) - values[3]).max() > 0.1, "the prompts hardly differ"
    for name, values in (null or {}).items():
        assert found.null is not None
        np.testing.assert_allclose(found.null[name], values, atol=tolerance, err_msg=name)


def write_text(folder: Path, output: Path, guidance: float = GUIDANCE) -> tuple[TextRecord, Path]:
    """Write graphs and tokenizers of a pipeline; return their record and their folder."""
    model = load_model(plan_of(folder, guidance, prompts=["cat"]))
    assert model.prompts is not None
    make_text(model.prompts, PROMPTS, output, Recorder())
    record = text_record(output)
    assert record is not None
    return record, output


def text_model(written: tuple[TextRecord, Path]) -> TextModel:
    """Return the encoders as a bundle opens them."""
    record, folder = written
    parts = []
    for one in record.encoders:
        tokenizer = read_tokenizer((folder / one.tokenizer).read_bytes(), folder / one.tokenizer, one.tokens)
        encoder = GraphEncoder(folder / one.graph, one.inputs)
        parts.append(TextPart.of(one, tokenizer, encoder, encoder.release))
    return TextModel(record, tuple(parts))
