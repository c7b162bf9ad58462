"""The arithmetic on numbers that can be done by hand, and the page that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.errors import UsageError
from tools.scale_assumptions import ASSUMPTIONS
from tools.scale_model import ScaleModel, main, tables, with_changes

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
BY_HAND = {
    "parameters": 1e9, "layers": 10, "width": 100, "image_side": 160, "pixels_a_token": 16, "text_tokens": 0, "steps": 10, "images": 100,
    "batch": 4, "precisions": 1, "budget": 0, "calibration_samples": 8, "quantized_tera_ops": 100, "measured_tera_ops": 10,
    "full_tera_ops": 10, "utilisation": 0.5, "memory_gb_a_second": 1000, "ray_start": 7, "unit_overhead": 1, "decoder_seconds": 0.5,
    "step_overhead": 0,
}  # fmt: skip


def model(gpus: int, **changes: float) -> ScaleModel:
    values = {name: one.value for name, one in ASSUMPTIONS.items()}
    return ScaleModel({**values, **BY_HAND, **changes}, gpus)


def test_a_row_takes_its_arithmetic_or_the_reading_of_its_weights() -> None:
    operations = 2 * 1e9 * 100 + 4 * 10 * 100**2 * 100  # 100 tokens
    assert model(1).operations == pytest.approx(operations)
    assert model(1).row_seconds("quantized") == pytest.approx(operations / 50e12)
    assert model(1, quantized_tera_ops=1e6).row_seconds("quantized") == pytest.approx(1.01e9 / 1e12 / 4)


def test_sampling_goes_in_waves_of_batches() -> None:
    row = model(1).row_seconds("quantized")
    one, eight = model(1).sampling, model(8).sampling
    assert one["networks"] == pytest.approx(25 * 10 * 4 * row)
    assert eight["networks"] == pytest.approx(4 * 10 * 4 * row)  # 25 batches: three waves of eight, and one of a single batch
    assert [eight["decoder"], eight["units"]] == pytest.approx([8.0, 4.0])
    assert eight["start"] - one["start"] == 7


def test_the_walk_is_shared_and_the_rest_of_a_build_is_not() -> None:
    one, eight = model(1).build, model(8).build
    full, quantized = (model(1).row_seconds(kind) for kind in ("full", "measured"))
    assert one["walk"] == pytest.approx(80 * (full + quantized))
    assert eight["walk"] - 7 == pytest.approx(one["walk"] / 8)
    assert {name: eight[name] for name in eight if name != "walk"} == {name: one[name] for name in one if name != "walk"}
    assert one["probes"] == 0
    twice = model(1, budget=1).build
    assert twice["walk"] == pytest.approx(2 * one["walk"])
    assert twice["probes"] > 0


def test_assumptions_are_changed_by_name_in_a_file_or_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    done = CliRunner().invoke(main, ["--write", str(path), "--set", "steps=50"])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["steps"]["value"] == 50
    values = with_changes(ASSUMPTIONS, path, ("batch=2",))
    assert (values["steps"], values["batch"], values["images"]) == (50, 2, 50000)
    for wrong, named in (
        ("stops=3", "did you mean|There is no such assumption"),
        ("steps=many", "not a number"),
        ("steps=-1", "not a number"),
    ):
        with pytest.raises(UsageError, match=named):
            with_changes(ASSUMPTIONS, None, (wrong,))


def test_the_page_shows_what_the_command_prints() -> None:
    assert tables({name: one.value for name, one in ASSUMPTIONS.items()}) in PAGE.read_text()
