"""A plan for ONNX Runtime's CUDA provider: whose device is missing, or which the CPU plays here, with its name and its bound buffers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from engines.backends.onnxruntime import onnxruntime_backend as backend
from engines.backends.onnxruntime.onnxruntime_backend import BoundSession
from engines.bundle.bundle import Bundle
from engines.errors import MissingBackendError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from ptqd_export.plan import PlanFile
    from tests.ptqd_export.conftest import Built

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def plan_file(class_build: Built, tmp_path: Path) -> PlanFile:
    target = class_build.plan_file.plan.target.model_dump() | {"provider": "CUDA"}
    return class_build.resumed_in(tmp_path / "cuda", target=target, precisions=["w8a8"])


class Session:
    """The CPU's session, under the name of the provider that was asked for."""

    def __init__(self, path: Path, options: Any, providers: list[str], **others: Any) -> None:
        self._session = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(path, options, providers=[CPU], **others)
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that buffers were bound to."""
    bound: list[str] = []

    def bind(session: Any, device: str) -> BoundSession:
        bound.append(device)
        return BoundSession(session, "cpu")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(backend, "BoundSession", bind)
    return bound


def test_provider_that_is_missing_ends_the_build_before_it_begins(plan_file: PlanFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    stages = sorted(plan_file.output_path.rglob("*"))
    with pytest.raises(MissingBackendError, match=rf"no {CUDA} on this machine") as error:
        run_build(plan_file)
    assert error.value.exit_code == 3
    assert sorted(plan_file.output_path.rglob("*")) == stages


def test_what_the_plan_names_runs_the_graphs_in_the_build_and_in_the_bundle(plan_file: PlanFile, device: list[str]) -> None:
    run_build(plan_file)
    assert len(device) > 3
    assert set(device) == {"cuda"}
    bundle = Bundle.open(plan_file.output_path)
    assert (bundle.manifest.target.provider, bundle.manifest.measured_on) == ("CUDA", "onnxruntime-cuda")
    device.clear()
    ChainChoice().open(bundle, 2)
    assert device == ["cuda"]
    device.clear()
    ChainChoice(runtime="onnxruntime").open(bundle, 2)
    assert device == []
