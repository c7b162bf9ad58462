"""The section `target`: what its engines take, and what can be asked of them."""

from __future__ import annotations

from typing import Any

import pytest

from ptqd_export.plan import load_plan
from tests.ptqd_export.plan.plans import Write, problems


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (
            {"name": "onnxruntime", "high_precision": "fp16"},
            'target.high_precision: found "fp16", expected "fp32" for the target onnxruntime',
        ),
        (
            {"name": "onnxruntime", "batch": {}},
            "target.batch: found {}, expected null for the target onnxruntime, whose engines take any batch",
        ),
        (
            {"name": "onnxruntime", "workspace_gib": 1.0},
            "target.workspace_gib: found 1.0, expected null for the target onnxruntime, which builds no engines ahead of time",
        ),
        (
            {"name": "tensorrt", "provider": "CUDA"},
            'target.provider: found "CUDA", expected "CPU" for the target tensorrt, whose engines run on the GPU anyway',
        ),
        (
            {"name": "tensorrt", "batch": {"min": 2, "opt": 1}},
            'target.batch: found {"min": 2, "opt": 1}, expected min, opt and max in ascending order',
        ),
    ],
)
def test_target_takes_what_its_engines_are_built_with(write: Write, target: dict[str, Any], problem: str) -> None:
    assert problems(write(target=target)) == [problem]


@pytest.mark.parametrize(("name", "high_precision", "batch"), [("tensorrt", "fp16", (1, 8, 64)), ("onnxruntime", "fp32", None)])
def test_target_brings_its_own_defaults(write: Write, name: str, high_precision: str, batch: tuple[int, ...] | None) -> None:
    target = load_plan(write(target={"name": name})).plan.target
    assert target.high_precision == high_precision
    assert batch == (None if target.batch is None else (target.batch.min, target.batch.opt, target.batch.max))


def test_8_bit_floats_are_for_targets_that_run_them(write: Write) -> None:
    assert problems(write(precisions=["fp8", "w8a8"])) == [
        'target.name: found "onnxruntime", expected a target that runs 8-bit floats for the precision fp8: "tensorrt" or "tensorrt-rtx"'
    ]
    for name, words in (("nvfp4", "4-bit floats in blocks"), ("nvfp4a8", "4-bit floats in blocks"), ("mxfp8", "8-bit floats in blocks")):
        (problem,) = problems(write(precisions=[name]))
        assert f'expected a target that runs {words} for the precision {name}: "tensorrt" or "tensorrt-rtx"' in problem
    names = ["fp8", "nvfp4", "nvfp4a8", "mxfp8"]
    assert load_plan(write(precisions=names, target={"name": "tensorrt"})).plan.precisions == tuple(names)


def test_attention_in_8_bits_is_for_targets_that_multiply_it_so(write: Write) -> None:
    for form in ("fp8", "int8"):
        assert problems(write(quantization={"attention": form})) == [
            f'target.name: found "onnxruntime", expected a target with attention in {form}: "tensorrt" or "tensorrt-rtx"; '
            'or quantization.attention "float"'
        ]
        for name in ("tensorrt", "tensorrt-rtx"):
            assert load_plan(write(quantization={"attention": form}, target={"name": name})).plan.quantization.attention == form


def test_half_precision_network_needs_a_target_with_such_engines(write: Write) -> None:
    assert load_plan(write(precisions=["fp16", "w8a8"], target={"name": "tensorrt-rtx"})).plan.precisions == ("fp16", "w8a8")
    assert problems(write(precisions=["fp16", "w8a8"])) == [
        'target.name: found "onnxruntime", expected a target with fp16 engines for the precision fp16: "tensorrt" or "tensorrt-rtx"'
    ]


def test_time_is_a_cost_where_it_is_measured_or_published(write: Write) -> None:
    steps, trt = {"policy": "budget", "cost": "time", "budget": 0.5}, {"name": "tensorrt-rtx"}
    assert load_plan(write(steps=steps)).plan.steps.cost == "time"
    assert load_plan(write(steps=steps, target=trt, precisions=["nvfp4", "fp8"])).plan.steps.cost == "time"
    assert problems(write(steps=steps, target=trt, precisions=["fp8", "w4a8"])) == [
        'target.name: found "tensorrt-rtx", expected a target that the build can time for steps.cost "time"; or target.measure "engines", '
        'beside its device; or cost "bit_operations"; '
        "or only precisions with a published time (fp16, w8a8, fp8, nvfp4), not w4a8"
    ]
    (problem,) = problems(write(steps=steps, target=trt, precisions=["fp8"], reuse={"cuts": ["skip_1"]}))
    assert 'with reuse.cuts; or target.measure "engines"' in problem
    measured = {**trt, "measure": "engines"}
    assert load_plan(write(steps=steps, target=measured, precisions=["w4a8"], reuse={"cuts": ["skip_1"]})).plan.steps.cost == "time"


def test_integers_are_not_chosen_by_time_where_it_is_not_measured(write: Write) -> None:
    quantization = {"integer_layers": "faster"}
    assert load_plan(write(quantization=quantization)).plan.quantization.integer_layers == "faster"
    assert problems(write(quantization=quantization, target={"name": "tensorrt"})) == [
        'target.name: found "tensorrt", expected a target that the build can time for quantization.integer_layers "faster"; or "all"'
    ]
