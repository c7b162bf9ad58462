"""What is open while samples are drawn and decoded."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.backends.base import Engine
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.networks.image_decoder import Decoder
from tests.conftest import TinyBundle


def test_networks_are_freed_before_the_last_pictures_are_decoded(
    tiny_decoded: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two batches, the first is decoded beside the networks. The decoder opens after the first chain."""
    networks, decoders = weakref.WeakSet[Engine](), list[str]()
    seen, opened = list[int](), list[int]()
    own_open, own_call = OnnxRuntimeBackend.open, Decoder.__call__

    def noted(backend: OnnxRuntimeBackend, graph: Path, rows: int) -> Engine:
        engine = own_open(backend, graph, rows)
        if graph.name == "decoder.onnx":
            opened.append(len(networks))
            decoders.append(graph.name)
        else:
            networks.add(engine)
        return engine

    def decoded(decoder: Decoder, states: Any) -> Any:
        seen.append(len(networks))
        return own_call(decoder, states)

    monkeypatch.setattr(OnnxRuntimeBackend, "open", noted)
    monkeypatch.setattr(Decoder, "__call__", decoded)
    sample_bundle(SampleRequest(tiny_decoded.folder, tmp_path / "two", 4, 1, batch_size=2))
    assert decoders == ["decoder.onnx"]
    assert seen[0] >= 1
    assert seen[1] == 0
    opened.clear()
    sample_bundle(SampleRequest(tiny_decoded.folder, tmp_path / "one", 4, 1, batch_size=4))
    assert opened == [0]
    one, two = (sorted(folder.glob("0*.png")) for folder in (tmp_path / "one", tmp_path / "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(one) == 4
