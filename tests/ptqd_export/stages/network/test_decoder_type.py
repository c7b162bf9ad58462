"""Decoders for TensorRT compute in the target's float type, where that hardly changes their images."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import build_engine
from engines.networks.engine_denoiser import STATE
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.build_progress import ProgressTracker
from ptqd_export.stages.network.decoder_files import DECODER, decoder_record
from ptqd_export.stages.network.decoding import LEAST_PSNR, make_decoder

LATENT = Path(__file__).parents[4] / "tools" / "latent" / "plan.json"


def _context(high_precision: str, folder: Path) -> BuildContext:
    plan_file = load_plan(LATENT)
    target = plan_file.plan.target.model_validate({"name": "tensorrt-rtx", "high_precision": high_precision})
    return BuildContext(PlanFile(plan_file.plan.model_copy(update={"target": target}), plan_file.folder, folder))


def _types(path: Path) -> set[str]:
    weights = [value for value in ir.load(path).graph.initializers.values() if len(value.shape or ()) > 1]
    return {value.dtype.name for value in weights if value.dtype is not None}


@pytest.mark.parametrize(("high_precision", "name"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_images_of_a_half_are_those_of_float32(high_precision: str, name: str, tmp_path: Path) -> None:
    context = _context(high_precision, tmp_path)
    make_decoder(context, tmp_path, ProgressTracker(lambda _: None))
    record, decoder = decoder_record(tmp_path), context.model.decoder
    assert record is not None
    assert decoder is not None
    assert record.computes_in == high_precision
    assert _types(tmp_path / DECODER) == {name}
    states = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        error = context.backend.open(tmp_path / DECODER, 2).run({STATE: states.numpy()}) - decoder(states).numpy()
    assert record.psnr_db is not None
    assert 10 * torch.tensor(4 / (error**2).mean()).log10() == pytest.approx(record.psnr_db, abs=3)
    assert record.psnr_db > LEAST_PSNR
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    build_engine(BuildSpec(tmp_path / DECODER, "tensorrt-rtx", BatchProfile(1, 1, 2)), tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size > 0


@pytest.mark.parametrize(("high_precision", "factor"), [("fp16", 1e5), ("fp32", 1.0)])
def test_a_decoder_that_overflows_stays_in_float32(high_precision: str, factor: float, tmp_path: Path) -> None:
    """Norms divide the factor out again, so that float32 draws the same images."""
    context = _context(high_precision, tmp_path)
    decoder = context.model.decoder
    assert decoder is not None
    with torch.no_grad():
        decoder.first_stage.decoder.conv_in.weight.mul_(factor)  # type: ignore[union-attr, operator]
    make_decoder(context, tmp_path, ProgressTracker(lambda _: None))
    record = decoder_record(tmp_path)
    assert record is not None
    assert (record.computes_in, record.psnr_db) == ("fp32", None)
    assert _types(tmp_path / DECODER) == {"FLOAT"}
    assert {path.name for path in tmp_path.iterdir()} == {DECODER, "decoder.json"}
