"""Prompts of diffusion transformers in miniature against their own pipelines: T5 and CLIP, masks, lengths, and how encoders are joined."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.backends.onnxruntime.onnxruntime_session import open_session
from engines.bundle.manifest import ModelRecord, TextRecord
from engines.errors import MissingBackendError, PtqdError, UsageError
from engines.networks.prompts import GraphEncoder, TextModel, TextPart
from ptqd_export.models.load import load_model
from ptqd_export.models.text.text_encoders import _load
from ptqd_export.models.text.tokenizer import T5_TOKENIZER, TokenLimits, portable_tokenizer
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.text import make_text, text_record
from ptqd_export.stages.run_build import _text
from ptqd_export.stages.summary import _beside
from tests.ptqd_export.models.pipelines import plan_of
from tests.ptqd_export.models.text import tiny_t5
from tests.ptqd_export.models.text.prompt_checks import NEGATIVE, PROMPTS, Arrays, check, pipeline, text_model, write_text
from tests.ptqd_export.stages.recorder import Recorder

LENGTHS = {
    "pixart-sigma": 300, "pixart-alpha": 120, "sd3": 77 + 256, "sd3-without-t5": 77 + 256, "flux-dev": 512, "flux-schnell": 256,
    "chroma": 512,
}  # fmt: skip
GUIDED = tuple(name for name in LENGTHS if not name.startswith("flux"))


def encoded(family: str, folder: Path, negative: str | None) -> tuple[Arrays, Arrays | None]:
    """Return rows and null row by conditioning input, as the pipeline encodes them; without guidance there is no null row."""
    asked: dict[str, Any] = {"prompt": list(PROMPTS)}
    if family in GUIDED:
        asked |= {"negative_prompt": "" if negative is None and family.startswith("pixart") else negative}
    if family.startswith("sd3"):
        asked |= {"prompt_2": None, "prompt_3": None, "negative_prompt": None if negative is None else [negative] * len(PROMPTS)}
    if family == "flux-schnell":
        asked |= {"max_sequence_length": 256}
    with torch.no_grad():
        given = pipeline(folder).encode_prompt(**asked, device=torch.device("cpu"))
    found = [value.numpy() for value in given]
    if family == "chroma":
        rows, _, mask, null, _, null_mask = found
        names = ("encoder_hidden_states", "attention_mask")
        return dict(zip(names, (rows, mask), strict=True)), dict(zip(names, (null[0], null_mask[0]), strict=True))
    if family.startswith("pixart"):
        rows, mask, null, null_mask = found
        names = ("encoder_hidden_states", "encoder_attention_mask")
        return dict(zip(names, (rows, mask), strict=True)), dict(zip(names, (null[0], null_mask[0]), strict=True))
    names = ("encoder_hidden_states", "pooled_projections")
    if family.startswith("flux"):
        return dict(zip(names, found[:2], strict=True)), None
    rows, null, pooled, null_pooled = found
    return dict(zip(names, (rows, pooled), strict=True)), dict(zip(names, (null[0], null_pooled[0]), strict=True))


SLOW = ("pixart-alpha", "flux-schnell")
"""Families marked slow: they differ from the others of their kind in lengths alone."""


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LENGTHS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5.WRITE[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def written(family: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextRecord, Path]:
    return write_text(folder, tmp_path_factory.mktemp(f"{family}-text"))


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_prompts_become_the_embeddings_of_the_pipeline(
    family: str, folder: Path, written: tuple[TextRecord, Path], negative: str | None
) -> None:
    rows, null = encoded(family, folder, negative)
    assert rows["encoder_hidden_states"].shape[1] == LENGTHS[family]
    found = load_model(plan_of(folder, prompts=list(PROMPTS), negative_prompt=negative)).conditioning
    assert found is not None
    check(found, rows, null, 1e-5)
    check(text_model(written).condition(PROMPTS, negative), rows, null, 1e-4)


def test_the_prompt_that_is_too_long_is_named(written: tuple[TextRecord, Path]) -> None:
    assert text_model(written).cut(PROMPTS) == (1,)


class _Loaded(weakref.WeakSet[Any]):
    """What a function made and nobody has freed; a second one beside the first is an error."""

    count = 0

    def of(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            gc.collect()
            assert not self, "the one before is still in memory"
            result = make(*arguments, **options)
            self.add(result)
            self.count += 1
            return result

        return made


def test_large_encoders_are_open_one_at_a_time(written: tuple[TextRecord, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    record, loaded = written[0], _Loaded()
    monkeypatch.setattr("engines.networks.prompts.KEPT_BYTES", 0)
    monkeypatch.setattr("engines.networks.prompts.open_session", loaded.of(open_session))
    text_model(written).condition(PROMPTS[:1])
    assert (loaded.count, len(loaded)) == (len(record.encoders), 0)


def test_a_build_loads_encoders_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded = tiny_t5.WRITE["flux-dev"](tmp_path), _Loaded()
    monkeypatch.setattr("ptqd_export.models.text.text_encoders._load", loaded.of(_load))
    record, _ = write_text(folder, tmp_path)
    assert loaded.count >= 2 * len(record.encoders), "for the embeddings of the plan's prompts, and for the graphs"
    gc.collect()
    assert not loaded


def test_large_encoders_have_weights_in_8_bits_and_embeddings_near_those_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_t5.write_pixart(tmp_path)
    monkeypatch.setattr("ptqd_export.stages.network.text.LARGE", 1000)
    monkeypatch.setattr("ptqd_export.graph.passes.weight_only.TABLE_ROWS", 1)
    monkeypatch.setattr("ptqd_export.stages.network.text.LEAST_COSINE", 0.999999)
    prompts = load_model(plan_of(folder, prompts=["cat"])).prompts
    assert prompts is not None
    with pytest.raises(
        PtqdError, match=r"(?s)8 bits change this text encoder too much.*text_encoder: a cosine of 0\.99\d+ for encoder_hidden"
    ):
        make_text(prompts, PROMPTS, tmp_path, Recorder())
    text = prompts.load()
    part = TextPart.of(
        text.record.encoders[0], text.tokenizers[0].tokenizer, GraphEncoder(tmp_path / "text/text_encoder.onnx", ("encoder_hidden_states",))
    )
    found = TextModel(text.record, (part,)).condition(PROMPTS)
    rows, _ = encoded("pixart-sigma", folder, None)
    exact, near = (values["encoder_hidden_states"].reshape(len(PROMPTS), -1) for values in (rows, found.tables))
    cosines = (exact * near).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert cosines.min() > 0.99
    monkeypatch.setattr("ptqd_export.stages.network.text.LEAST_COSINE", 0.99)
    (tmp_path / "again").mkdir()
    make_text(prompts, PROMPTS, tmp_path / "again", Recorder())
    record = text_record(tmp_path / "again")
    assert record is not None
    assert record.encoders[0].least_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert "text_encoder.onnx: weights in 8 bits; a cosine of 0.99" in _beside(ModelRecord.model_construct(text=record))
    assert np.abs(exact - near).max() > 1e-3
    np.testing.assert_array_equal(found.tables["encoder_attention_mask"], rows["encoder_attention_mask"])
    assert (tmp_path / "text/text_encoder.onnx.data").exists(), "the runtime maps weights only from a file of their own"


def test_the_plan_keeps_large_encoders_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_t5.write_pixart(tmp_path)
    monkeypatch.setattr("ptqd_export.stages.network.text.LARGE", 1000)
    plan_file = plan_of(folder, prompts=list(PROMPTS))
    kept = plan_file.plan.quantization.model_copy(update={"keep_float_encoders": True})
    cache = _Stages(tmp_path)
    _text(BuildContext(replace(plan_file, plan=plan_file.plan.model_copy(update={"quantization": kept}))), cache)  # type: ignore[arg-type]  # a stub
    record = text_record(tmp_path)
    assert record is not None
    check(text_model((record, tmp_path)).condition(PROMPTS), *encoded("pixart-sigma", folder, None), 1e-4)
    assert cache.inputs["in_float"]


class _Stages:
    """Stands in for the cache of stages: runs a stage in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: Mapping[str, Any] = {}

    def run(self, _: str, inputs: Mapping[str, Any], make: Callable[[Path, Recorder], None], room: int) -> Path:
        assert room
        self.inputs = inputs
        make(self.folder, Recorder())
        return self.folder


def test_a_tokenizer_that_must_be_converted_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        MissingBackendError, match=r"(?s)spiece\.model, transformers needs sentencepiece.*pip install sentencepiece protobuf"
    ):
        portable_tokenizer(tmp_path, TokenLimits(None, 100), T5_TOKENIZER, 20)


def test_an_encoder_of_another_class_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_t5.write_pixart(tmp_path)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["UMT5EncoderModel"]}))
    with pytest.raises(UsageError, match=r"(?s)text encoder is not supported.*UMT5EncoderModel.*T5EncoderModel"):
        load_model(plan_of(folder, prompts=["cat"]))
