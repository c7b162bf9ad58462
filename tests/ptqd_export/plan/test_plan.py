"""The plan: defaults, validation, paths, and its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engines.errors import UsageError
from engines.samplers import SAMPLERS
from ptqd_export.plan import Plan, PlanFile, load_plan

SHORTEST = {
    "model": {"path": "tools/digits/model"},
    "sampler": {"name": "ddim", "steps": 20, "eta": 1.0, "guidance": 1.5},
    "precisions": ["w8a8", "w4a8"],
    "correction": {"mode": "joint", "variance": "schedule"},
    "steps": {"policy": "snr"},
    "target": {"name": "onnxruntime"},
    "output": "build/digits",
}

RESOLVED = """\
{
  "model": {
    "path": "tools/digits/model",
    "factory": null,
    "null_class": null,
    "conditions": null,
    "prompts": null,
    "negative_prompt": null,
    "lora": null
  },
  "sampler": {
    "name": "ddim",
    "steps": 20,
    "eta": 1.0,
    "guidance": 1.5,
    "timestep_spacing": null,
    "clip_sample": null,
    "prediction_type": null,
    "use_karras_sigmas": null
  },
  "precisions": [
    "w8a8",
    "w4a8"
  ],
  "quantization": {
    "weight_scale": "mse",
    "activation_scale": "mse",
    "rounding": "nearest",
    "reconstruction": {
      "samples": 256,
      "iterations": 500,
      "batch_size": 16,
      "activation_scales": true,
      "memory_gib": 4.0
    },
    "split_concatenations": false,
    "channel_scaling": null,
    "activation_steps": "all",
    "keep_float": [],
    "keep_8bit_weights": [],
    "integer_layers": "all"
  },
  "calibration": {
    "samples": 512,
    "batch_size": 64,
    "activation_samples": 256,
    "seed": 0,
    "trajectory": "quantized",
    "device": "cpu",
    "dtype": "float32"
  },
  "correction": {
    "mode": "joint",
    "parts": [
      "gain",
      "offset"
    ],
    "variance": "schedule"
  },
  "steps": {
    "policy": "snr",
    "precisions": null,
    "cost": "bit_operations",
    "budget": null
  },
  "target": {
    "name": "onnxruntime",
    "provider": "CPU",
    "threads": null,
    "benchmark_batch": 8,
    "high_precision": "fp32",
    "batch": null,
    "workspace_gib": null
  },
  "output": "build/digits"
}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the shortest plan with some sections replaced."""

    def write_plan(**sections: object) -> Path:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(SHORTEST | sections))
        return path

    return write_plan


def _problems(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_plan(path)
    assert caught.value.exit_code == 2
    heading, *lines, mend = str(caught.value).split("\n")
    assert heading == f"{path} is not a valid plan"
    assert "`ptqd-export schema`" in mend
    return [line.removeprefix("  ") for line in lines]


def test_shortest_plan_resolves_to_every_default(write: Write) -> None:
    assert load_plan(write()).plan.resolved_json() == RESOLVED


def test_optional_sections_have_the_defaults_of_the_shortest_plan(write: Write, tmp_path: Path) -> None:
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({key: SHORTEST[key] for key in ("model", "sampler", "precisions", "target", "output")}))
    assert load_plan(bare).plan == load_plan(write()).plan


def test_sampler_is_deterministic_and_unguided_where_the_plan_is_silent(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "ddim", "steps": 7})).plan.sampler
    assert (sampler.eta, sampler.guidance) == (0.0, 1.0)


def test_resolved_plan_reads_back_as_itself(write: Write, tmp_path: Path) -> None:
    plan = load_plan(write(quantization={"keep_float": ["mid_block.*"]}, steps={"policy": "fixed", "precisions": ["w8a8"]})).plan
    resolved = tmp_path / "resolved.json"
    resolved.write_text(plan.resolved_json())
    assert load_plan(resolved).plan == plan
    assert load_plan(resolved).plan.resolved_json() == plan.resolved_json()


def test_resolved_bytes_depend_on_neither_place_nor_spelling(write: Write, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else" / "other.json"
    elsewhere.parent.mkdir()
    reordered = dict(reversed(SHORTEST.items())) | {"sampler": {"guidance": 1.5, "eta": 1, "steps": 20, "name": "ddim"}}
    elsewhere.write_text(json.dumps(reordered))
    text = load_plan(elsewhere).plan.resolved_json()
    assert text == load_plan(write()).plan.resolved_json()
    assert str(tmp_path) not in text


def test_resolved_plan_is_ascii(write: Write) -> None:
    text = load_plan(write(output="build/größer")).plan.resolved_json()
    assert text.isascii()
    assert json.loads(text)["output"] == "build/größer"


def test_plan_cannot_be_changed(write: Write) -> None:
    plan = load_plan(write()).plan
    with pytest.raises(ValidationError, match="frozen"):
        plan.sampler.steps = 3
    assert isinstance(plan.precisions, tuple)


def test_paths_are_relative_to_the_plan_not_to_the_caller(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model={"path": "../model", "conditions": "prompts.npz"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan_file = load_plan(Path("../plan.json"))
    monkeypatch.chdir("/")
    assert plan_file.model_path.resolve() == tmp_path.parent / "model"
    assert plan_file.conditions_path is not None
    assert plan_file.conditions_path.resolve() == tmp_path / "prompts.npz"
    assert plan_file.output_path.resolve() == tmp_path / "build" / "digits"


def test_absolute_path_stays_and_conditions_are_optional(write: Write) -> None:
    plan_file = load_plan(write(model={"path": "/models/x"}))
    assert plan_file.model_path == Path("/models/x")
    assert plan_file.conditions_path is None


def test_output_of_the_command_line_wins_and_leaves_the_plan_alone() -> None:
    plan = Plan.model_validate(SHORTEST)
    plan_file = PlanFile(plan, Path("/plans"), output=Path("here"))
    assert plan_file.output_path == Path("here")
    assert plan_file.plan.resolved_json() == RESOLVED


def test_missing_plan_says_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(UsageError) as caught:
        load_plan(path)
    assert str(caught.value) == (
        f"there is no plan\n  found:    no file {path}\n  expected: a plan.json\n"
        "  mend:     write one with `ptqd-export init`, or correct --plan"
    )


def test_plan_that_is_not_json_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"model": {"path": "x",}}')
    with pytest.raises(UsageError, match=r"is not JSON\n  found:    line 1, column \d+"):
        load_plan(path)


def test_registered_samplers_are_accepted(write: Write) -> None:
    assert {"ddim", "ddpm"} <= set(SAMPLERS)
    for name in SAMPLERS:
        assert load_plan(write(sampler={"name": name, "steps": 5})).plan.sampler.name == name


REFUSED = [
    ({"model": {}}, "model: found {}, expected either path or factory"),
    ({"model": {"path": "m", "factory": "m:f"}}, 'model: found {"path": "m", "factory": "m:f"}, expected either path or factory'),
    ({"model": {"factory": "net.py"}}, 'model.factory: found "net.py", expected "package.module:function"'),
    ({"model": {"path": ""}}, 'model.path: found "", expected a string that is not empty'),
    ({"model": {"path": "m", "null_class": -1}}, "model.null_class: found -1, expected 0 or more"),
    ({"model": {"path": "m", "null_clas": 3}}, 'model.null_clas: unknown key; did you mean "null_class"?'),
    ({"sampler": {"name": "ddim"}}, "sampler.steps: missing; expected number of denoising steps"),
    ({"sampler": {"name": "ddim", "steps": 0}}, "sampler.steps: found 0, expected 1 or more"),
    ({"sampler": {"name": "ddim", "steps": "20"}}, 'sampler.steps: found "20", expected a whole number'),
    ({"sampler": {"name": "ddim", "steps": 9, "eta": 1.5}}, "sampler.eta: found 1.5, expected 1.0 or less"),
    ({"sampler": {"name": "ddim", "steps": 9, "guidance": -1}}, "sampler.guidance: found -1, expected 0.0 or more"),
    (
        {"sampler": {"name": "ddim", "steps": 9, "timestep_spacing": "even"}},
        "sampler.timestep_spacing: found \"even\", expected 'leading', 'trailing' or 'linspace'",
    ),
    ({"sampler": {"name": "ddim", "steps": 9, "clip_sample": 1}}, "sampler.clip_sample: found 1, expected true or false"),
    (
        {"sampler": {"name": "ddim", "steps": 9, "prediction_type": "v"}},
        "sampler.prediction_type: found \"v\", expected 'epsilon', 'v_prediction', 'sample' or 'flow'",
    ),
    ({"precisions": []}, "precisions: found [], expected at least 1 item"),
    ({"precisions": ["w8a8", "w8a8"]}, 'precisions: found ["w8a8", "w8a8"], expected names that are all different'),
    (
        {"precisions": ["w8a8", "w4a9"]},
        'precisions[1]: found "w4a9", expected w2 to w8 followed by a4 to a8 or a16 (float activations), such as w4a8; '
        'or fp8, fp16 or fp32; did you mean "w4a8"?',
    ),
    ({"precisions": "w8a8"}, 'precisions: found "w8a8", expected a list'),
    ({"quantization": {"weight_scale": "mean"}}, "quantization.weight_scale: found \"mean\", expected 'mse' or 'max'"),
    ({"quantization": {"keep_float": "mid"}}, 'quantization.keep_float: found "mid", expected a list'),
    ({"calibration": {"samples": 0}}, "calibration.samples: found 0, expected 1 or more"),
    ({"calibration": {"batch_size": 2.5}}, "calibration.batch_size: found 2.5, expected a whole number"),
    ({"calibration": {"trajectory": "fp32"}}, "calibration.trajectory: found \"fp32\", expected 'quantized' or 'fp'"),
    ({"correction": {"vairance": "schedule"}}, 'correction.vairance: unknown key; did you mean "variance"?'),
    ({"correction": {"mode": "sined"}}, "correction.mode: found \"sined\", expected 'none', 'ptqd', 'signed', 'joint' or 'mmse'"),
    ({"steps": {"policy": "cost"}}, "steps.policy: found \"cost\", expected 'snr', 'budget' or 'fixed'"),
    ({"steps": {"policy": "budget", "budget": 0}}, "steps.budget: found 0, expected more than 0.0"),
    ({"quantization": {"rounding": "learned"}}, "quantization.rounding: found \"learned\", expected 'nearest', 'layer' or 'block'"),
    ({"quantization": {"channel_scaling": 2.0}}, "quantization.channel_scaling: found 2.0, expected 1.0 or less"),
    ({"calibration": {"device": "gpu"}}, 'calibration.device: found "gpu", expected "cpu", "cuda" or "cuda:0"'),
    ({"correction": {"parts": ["gain", "gain"]}}, 'correction.parts: found ["gain", "gain"], expected names that are all different'),
    ({"target": {}}, "target.name: missing; expected runtime"),
    ({"target": {"name": "TensorRT"}}, "target.name: found \"TensorRT\", expected 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'"),
    (
        {"target": {"name": "tensorrt", "high_precision": "tf32"}},
        "target.high_precision: found \"tf32\", expected 'fp32', 'fp16' or 'bf16'",
    ),
    ({"target": {"name": "tensorrt", "workspace_gib": 0}}, "target.workspace_gib: found 0, expected more than 0.0"),
    ({"target": {"name": "tensorrt", "batch": {"most": 2}}}, "target.batch.most: unknown key; known keys: min, opt, max"),
    ({"target": {"name": "onnxruntime", "provider": "cpu"}}, "target.provider: found \"cpu\", expected 'CPU' or 'CUDA'"),
    ({"target": {"name": "onnxruntime", "threads": 0}}, "target.threads: found 0, expected 1 or more"),
    ({"output": None}, "output: found null, expected a string"),
    ({"outputs": "x"}, 'outputs: unknown key; did you mean "output"?'),
]


@pytest.mark.parametrize(("sections", "problem"), REFUSED, ids=[problem.split(": ")[0] for _, problem in REFUSED])
def test_wrong_plan_is_refused_with_place_found_and_expected(write: Write, sections: dict[str, object], problem: str) -> None:
    assert _problems(write(**sections)) == [problem]


def test_unknown_sampler_lists_the_registered_ones(write: Write) -> None:
    (problem,) = _problems(write(sampler={"name": "dimm", "steps": 20}))
    assert problem.startswith('sampler.name: found "dimm", expected ')
    assert re.findall(r'"([^"]+)"', problem.split("expected")[1]) == list(SAMPLERS)


def test_all_problems_are_listed_in_one_message(write: Write) -> None:
    assert _problems(write(sampler={"name": "ddim", "steps": 0}, precisions=[], target={"name": "tpu"}, steps={"polcy": "snr"})) == [
        "sampler.steps: found 0, expected 1 or more",
        "precisions: found [], expected at least 1 item",
        'steps.polcy: unknown key; did you mean "policy"?',
        "target.name: found \"tpu\", expected 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'",
    ]


@pytest.mark.parametrize("names", [["w8a8"], ["fp32"], ["w4a8"] * 5 + ["w8a8"] * 14 + ["fp32"]])
def test_fixed_steps_take_one_name_or_one_for_each(write: Write, names: list[str]) -> None:
    assert load_plan(write(steps={"policy": "fixed", "precisions": names})).plan.steps.precisions == tuple(names)


def test_fixed_steps_of_another_length_or_with_other_names_are_refused(write: Write) -> None:
    assert _problems(write(steps={"policy": "fixed", "precisions": ["w8a8", "fp16", "w4a4"]})) == [
        'steps.precisions[1]: found "fp16", expected one of w8a8, w4a8, fp32',
        'steps.precisions[2]: found "w4a4", expected one of w8a8, w4a8, fp32',
        'steps.precisions: found ["w8a8", "fp16", "w4a4"], expected 1 name, or 20 (one for each step), not 3',
    ]


def test_empty_list_of_fixed_steps_is_refused(write: Write) -> None:
    assert _problems(write(steps={"policy": "fixed", "precisions": []})) == [
        "steps.precisions: found [], expected 1 name, or 20 (one for each step), not 0"
    ]


def test_fixed_steps_are_not_judged_by_a_section_that_is_itself_wrong(write: Write) -> None:
    assert _problems(write(sampler={"name": "ddim", "steps": 0}, steps={"policy": "fixed", "precisions": ["w8a8"] * 3})) == [
        "sampler.steps: found 0, expected 1 or more"
    ]


def test_policy_fixed_needs_precisions(write: Write) -> None:
    assert _problems(write(steps={"policy": "fixed"})) == [
        'steps: found {"policy": "fixed"}, expected "precisions" beside the policy "fixed"'
    ]


def test_policy_snr_takes_no_precisions(write: Write) -> None:
    assert _problems(write(steps={"precisions": ["w8a8"]})) == [
        'steps: found {"precisions": ["w8a8"]}, expected no "precisions" beside the policy "snr", or the policy "fixed"'
    ]


@pytest.mark.parametrize("steps", [{"policy": "budget"}, {"policy": "snr", "budget": 0.1}], ids=["missing", "alone"])
def test_policy_budget_and_a_budget_need_each_other(write: Write, steps: dict[str, Any]) -> None:
    assert _problems(write(steps=steps)) == [
        f'steps: found {json.dumps(steps)}, expected "budget" beside the policy "budget", and only there'
    ]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (
            {"name": "onnxruntime", "high_precision": "fp16"},
            'target.high_precision: found "fp16", expected "fp32" beside the target onnxruntime',
        ),
        (
            {"name": "onnxruntime", "batch": {}},
            "target.batch: found {}, expected nothing beside the target onnxruntime, whose engines take any batch",
        ),
        (
            {"name": "onnxruntime", "workspace_gib": 1.0},
            "target.workspace_gib: found 1.0, expected nothing beside the target onnxruntime, which builds no engines ahead of time",
        ),
        (
            {"name": "tensorrt", "provider": "CUDA"},
            'target.provider: found "CUDA", expected "CPU" beside the target tensorrt, whose engines run on the GPU anyway',
        ),
        (
            {"name": "tensorrt", "batch": {"min": 2, "opt": 1}},
            'target.batch: found {"min": 2, "opt": 1}, expected min, opt and max in this order',
        ),
    ],
)
def test_target_takes_what_its_engines_are_built_with(write: Write, target: dict[str, Any], problem: str) -> None:
    assert _problems(write(target=target)) == [problem]


def test_8_bit_floats_are_for_targets_that_run_them(write: Write) -> None:
    assert _problems(write(precisions=["fp8", "w8a8"])) == [
        'target.name: found "onnxruntime", expected a target that runs 8-bit floats beside the precision fp8: "tensorrt" or "tensorrt-rtx"'
    ]
    assert load_plan(write(precisions=["fp8"], target={"name": "tensorrt"})).plan.precisions == ("fp8",)


@pytest.mark.parametrize(("name", "high_precision", "batch"), [("tensorrt", "fp16", (1, 8, 64)), ("onnxruntime", "fp32", None)])
def test_target_brings_its_own_defaults(write: Write, name: str, high_precision: str, batch: tuple[int, ...] | None) -> None:
    target = load_plan(write(target={"name": name})).plan.target
    assert target.high_precision == high_precision
    assert batch == (None if target.batch is None else (target.batch.min, target.batch.opt, target.batch.max))


def test_half_precision_network_needs_a_target_with_such_engines(write: Write) -> None:
    assert load_plan(write(precisions=["fp16", "w8a8"], target={"name": "tensorrt-rtx"})).plan.precisions == ("fp16", "w8a8")
    assert _problems(write(precisions=["fp16", "w8a8"])) == [
        'target.name: found "onnxruntime", expected a target with fp16 engines beside the precision fp16: "tensorrt" or "tensorrt-rtx"'
    ]


def test_time_is_no_cost_where_it_is_not_measured(write: Write) -> None:
    steps = {"policy": "budget", "cost": "time", "budget": 0.5}
    assert load_plan(write(steps=steps)).plan.steps.cost == "time"
    assert _problems(write(steps=steps, target={"name": "tensorrt"})) == [
        'target.name: found "tensorrt", expected a target that the build can time beside steps.cost "time"; or cost "bit_operations"'
    ]


def test_used_steps_must_be_known_before_the_ranges(write: Write) -> None:
    (problem,) = _problems(write(quantization={"activation_steps": "used"}))
    assert 'expected the policy "fixed" beside quantization.activation_steps "used"' in problem


def _fields(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield f"{at}{name}", field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{at}{name}.")


def test_every_key_is_described() -> None:
    fields = dict(_fields(Plan))
    assert "sampler.eta" in fields
    assert [name for name, description in fields.items() if not description] == []


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """A validator of the part of JSON Schema that a plan uses."""
    if "$ref" in schema:
        return _accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in schema:
        return any(_accepts(option, value, root) for option in schema["anyOf"])
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if isinstance(value, dict):
        assert schema["additionalProperties"] is False
        if "oneOf" in schema and sum(_chooses(option, value) for option in schema["oneOf"]) != 1:
            return False
        return set(schema.get("required", ())) <= set(value) <= set(schema["properties"]) and all(
            _accepts(schema["properties"][key], inner, root) for key, inner in value.items()
        )
    if isinstance(value, list):
        different = not schema.get("uniqueItems") or len(set(value)) == len(value)
        return len(value) >= schema.get("minItems", 0) and different and all(_accepts(schema["items"], inner, root) for inner in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if value is not None and "exclusiveMinimum" in schema:
        return bool(value > schema["exclusiveMinimum"])
    return value is None or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def _chooses(option: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether an object has the keys that one choice requires, and the others as it says."""
    kinds = {key: TYPES[inner["type"]] for key, inner in option["properties"].items()}
    return set(option["required"]) <= set(value) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


@pytest.mark.parametrize("plan", [SHORTEST, json.loads(RESOLVED)], ids=["shortest", "resolved"])
def test_schema_accepts_plans(plan: dict[str, Any]) -> None:
    schema = Plan.model_json_schema()
    assert _accepts(schema, plan, schema)


@pytest.mark.parametrize(("sections", "problem"), REFUSED, ids=[problem.split(": ")[0] for _, problem in REFUSED])
def test_schema_refuses_what_the_reader_refuses(sections: dict[str, Any], problem: str) -> None:
    schema = Plan.model_json_schema()
    assert not _accepts(schema, SHORTEST | sections, schema), problem


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddpm", 1.0), ("dpm++2m", 0.0), ("dpm++2m-sde", 1.0), ("euler-ancestral", 1.0)])
def test_eta_defaults_to_the_samplers_own(write: Write, name: str, eta: float) -> None:
    plan = load_plan(write(sampler={"name": name, "steps": 20})).plan
    assert plan.sampler.eta == eta
    assert f'"eta": {eta}' in plan.resolved_json()


@pytest.mark.parametrize(
    ("sampler", "problem"),
    [
        ({"name": "ddpm", "eta": 0.5}, "sampler.eta: found 0.5, expected 1 or null beside the sampler ddpm"),
        ({"name": "dpm++2m", "eta": 1.0}, "sampler.eta: found 1.0, expected 0 or null beside the sampler dpm++2m"),
        (
            {"name": "euler", "clip_sample": True},
            "sampler.clip_sample: found true, expected false or null beside the sampler euler; true is for ddim, ddpm",
        ),
        (
            {"name": "ddim", "use_karras_sigmas": True},
            "sampler.use_karras_sigmas: found true, expected false or null beside the sampler ddim; "
            "true is for dpm++1, dpm++1-sde, dpm++2m, dpm++2m-sde, euler",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_a_sampler_does_not_have_is_refused(write: Write, sampler: dict[str, Any], problem: str) -> None:
    assert _problems(write(sampler=sampler | {"steps": 20})) == [problem]


def test_what_a_sampler_has_overrides_the_model(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "dpm++2m", "steps": 20, "use_karras_sigmas": True, "clip_sample": False})).plan.sampler
    assert sampler.overrides == {"use_karras_sigmas": True, "clip_sample": False}


def test_plms_has_a_row_more_than_steps_for_the_fixed_policy(write: Write) -> None:
    sampler = {"name": "plms", "steps": 3}
    assert load_plan(write(sampler=sampler, steps={"policy": "fixed", "precisions": ["w8a8"] * 4})).plan.steps.precisions is not None
    assert _problems(write(sampler=sampler, steps={"policy": "fixed", "precisions": ["w8a8"] * 3})) == [
        'steps.precisions: found ["w8a8", "w8a8", "w8a8"], expected 1 name, or 4 (one for each step), not 3'
    ]


def test_a_wrong_item_is_not_also_a_list_that_is_too_short(write: Write) -> None:
    (problem,) = _problems(write(precisions=["w9a8"]))
    assert problem.startswith('precisions[0]: found "w9a8"')
