"""Which chain a choice opens; what it refuses is shown at the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.chain.norm_guidance import NormGuidance
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.engine_bank import EngineBank
from engines.networks.kept_engines import KeptEngines

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Precisions whose engines were started."""
    seen: list[str] = []
    _told(monkeypatch, lambda path, _: seen.append(path.stem))
    return seen


def _told(monkeypatch: pytest.MonkeyPatch, tell: Callable[[Path, Mapping[str, Any]], None]) -> None:
    """Tell of every engine that is opened."""

    def opened(path: Path, **options: Any) -> OnnxRuntimeEngine:
        tell(path, options)
        return OnnxRuntimeEngine(path, **options)

    monkeypatch.setattr("engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", opened)


def test_default_is_the_schedules_choice_corrected_at_its_guidance(tiny: TinyBundle, started: list[str]) -> None:
    chain = ChainChoice().open(Bundle.open(tiny.folder), 4)
    assert chain.step_precisions == ("w4a8", "w4a8", "w8a8", "fp32")
    assert chain.corrected
    assert chain.guidance == 1.5
    assert started == ["w4a8", "w8a8", "fp32"]


def test_one_precision_opens_one_engine(tiny: TinyBundle, started: list[str]) -> None:
    chain = ChainChoice(precision="w8a8", correction="off").open(Bundle.open(tiny.folder), 4)
    assert chain.step_precisions == ("w8a8",) * 4
    assert not chain.corrected
    assert started == ["w8a8"]


@pytest.mark.parametrize(("guidance", "batch"), [(1.5, 8), (1.0, 4)])
def test_engines_are_told_how_many_samples_come_at_a_time(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, guidance: float, batch: int
) -> None:
    batches: list[int] = []
    _told(monkeypatch, lambda _, options: batches.append(options["batch"]))
    ChainChoice(precision="fp32", guidance=guidance, accept_guidance=True).open(Bundle.open(tiny.folder), 4)
    assert batches == [batch]


def test_other_guidance_must_be_accepted(tiny: TinyBundle, started: list[str]) -> None:
    bundle = Bundle.open(tiny.folder)
    with pytest.raises(UsageError, match="--accept-guidance"):
        ChainChoice(guidance=0.0).open(bundle, 4)
    assert started == []
    assert ChainChoice(guidance=1.5).open(bundle, 4).guidance == 1.5
    assert ChainChoice(guidance=0.0, accept_guidance=True).open(bundle, 4).guidance == 0.0


def test_all_guidance_scales_up_to_one_are_the_same(own_tiny: TinyBundle) -> None:
    own_tiny.edit_json("schedules/default.json", lambda schedule: schedule["sampler"].update(guidance=1.0))
    own_tiny.rehash("schedules/default.json")
    bundle = Bundle.open(own_tiny.folder)
    assert not ChainChoice(guidance=0.0, precision="fp32").open(bundle, 4).denoisers["fp32"].guided  # type: ignore[attr-defined]  # an engine's
    with pytest.raises(UsageError, match="--accept-guidance"):
        ChainChoice(guidance=1.2).open(bundle, 4)


def test_a_network_whose_guidance_keeps_norms_is_guided_at_the_scale_of_the_chain(own_tiny: TinyBundle) -> None:
    linear = EngineBank(Bundle.open(own_tiny.folder), 1.5, batch=2)["fp32"]
    own_tiny.edit_json("manifest.json", lambda manifest: manifest["model"].update(guidance_patch=2))
    bundle = Bundle.open(own_tiny.folder)
    kept, rows = KeptEngines(bundle), np.array([1, 0])
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape)).astype(np.float32)
    for scale in (1.5, 3.0):
        chain = ChainChoice(guidance=scale, accept_guidance=True, precision="fp32").open(bundle, 2, kept=kept)
        expected = NormGuidance(scale, 2)(linear(x, 500.0, rows))
        np.testing.assert_allclose(chain.denoisers["fp32"](x, 500.0, rows), expected, rtol=1e-5)
    with pytest.raises(UsageError, match=r"(?s)device cannot guide.*guidance 1.5.*--update host"):
        ChainChoice(update="device").open(bundle, 2)


def test_schedule_that_was_added_is_found_by_name(own_tiny: TinyBundle, started: list[str]) -> None:
    source = own_tiny.folder / "schedules" / "default.json"
    source.with_name("second.json").write_text(source.read_text().replace('"precision":"w4a8"', '"precision":"fp32"'))
    own_tiny.rehash("schedules/second.json")
    assert ChainChoice("second").open(Bundle.open(own_tiny.folder), 4).step_precisions == ("fp32", "fp32", "w8a8", "fp32")
    assert started == ["fp32", "w8a8"]


@pytest.fixture
def shifted_tiny(own_tiny: TinyBundle) -> Bundle:
    """One whose second step is shifted; all its steps take w8a8."""

    def shift(schedule: dict[str, Any]) -> None:
        first, second, *_ = schedule["steps"]
        names = ("input_scale", "x_coeff", "out_coeff", "prediction_coeffs")
        second["shifted"] = {"timestep": second["timestep"] + 3.5, **{name: first[name] for name in names}}
        for step in schedule["steps"]:
            step["precision"] = "w8a8"

    own_tiny.edit_json("schedules/default.json", shift)
    own_tiny.rehash("schedules/default.json")
    return Bundle.open(own_tiny.folder)


@pytest.mark.parametrize(
    "choice", [ChainChoice(), ChainChoice(precision="w8a8"), ChainChoice(precision="w4a8", correction="off"), ChainChoice(precision="fp32")]
)
def test_a_shifted_chain_takes_its_own_precisions_or_none_that_leaves_noise_or_no_correction(
    shifted_tiny: Bundle, started: list[str], choice: ChainChoice
) -> None:
    chain = choice.open(shifted_tiny, 4)
    assert started == [chain.step_precisions[0]]


def test_a_shifted_chain_takes_no_other_precision(shifted_tiny: Bundle, started: list[str]) -> None:
    with pytest.raises(UsageError, match=r"(?s)precision w4a8.*which uses w8a8.*ptqd-export schedule.*turn the correction off"):
        ChainChoice(precision="w4a8").open(shifted_tiny, 4)
    assert started == []
