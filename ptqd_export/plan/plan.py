"""The whole plan, and the checks that involve more than one section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from calib.quantizers.rules.precision import ATTENTION_FORMS, FLOAT_WIDTHS, GRAMMAR, PATTERN, Form, Precision, proposal
from engines.errors import UsageError
from engines.samplers import SAMPLERS
from ptqd_export.plan.calibration import CalibrationSection
from ptqd_export.plan.correction import CorrectionSection
from ptqd_export.plan.model import ModelSection
from ptqd_export.plan.plan_errors import Problem, expectation, expectations, one_of
from ptqd_export.plan.published_times import PUBLISHED
from ptqd_export.plan.quantization import QuantizationSection
from ptqd_export.plan.reuse import ReuseSection
from ptqd_export.plan.sampler import SamplerSection
from ptqd_export.plan.section import UNIQUE, Section, WrittenPath, all_different
from ptqd_export.plan.steps import FULL_PRECISION, StepsSection
from ptqd_export.plan.target import TargetSection
from ptqd_export.plan.targets import TARGETS


def _known_precision(name: str) -> str:
    try:
        Precision.parse(name)
    except UsageError:
        raise expectation("; ".join(filter(None, (GRAMMAR, proposal(name))))) from None
    return name


PrecisionName: TypeAlias = Annotated[str, AfterValidator(_known_precision), Field(json_schema_extra={"pattern": PATTERN})]


def _having(precision: str) -> str:
    """Name the targets that have engines of a float precision."""
    return " or ".join(f'"{name}"' for name, target in TARGETS.items() if precision in target.placement.high_precisions)


WORDS: Mapping[Form, str] = {"e4m3": "8-bit floats", "nvfp4": "4-bit floats in blocks", "mxfp8": "8-bit floats in blocks"}
"""Forms of quantized values as messages name them."""


def _storing(form: Form) -> str:
    """Name the targets whose quantized values can have a form."""
    return " or ".join(f'"{name}"' for name, target in TARGETS.items() if form in target.placement.forms)


class Plan(Section):
    """What `ptqd-export build` has to do. Paths are kept as they were written; `PlanFile` resolves them."""

    comments: tuple[str, ...] = Field(default=(), strict=False, description="notes for whoever reads the plan; a build ignores them")
    model: ModelSection = Field(description="the trained network")
    sampler: SamplerSection = Field(description="the walk from noise to sample")
    precisions: Annotated[
        tuple[PrecisionName, ...],
        Field(strict=False, min_length=1),
        UNIQUE,
        AfterValidator(all_different),
    ] = Field(description=f"precisions to build, each {GRAMMAR}")
    quantization: QuantizationSection = Field(
        default=QuantizationSection(), description="how scales and integers are found, and which layers are exempt"
    )
    calibration: CalibrationSection = Field(default=CalibrationSection(), description="what the statistics are measured on")
    correction: CorrectionSection = Field(default=CorrectionSection(), description="how the quantization noise is corrected on the host")
    reuse: ReuseSection = Field(
        default=ReuseSection(), description="where networks are cut, so that steps can reuse deep features of an earlier step"
    )
    steps: StepsSection = Field(default=StepsSection(), description="which precision runs at which step")
    target: TargetSection = Field(description="where the engines run")
    output: WrittenPath = Field(description="folder of the bundle, relative to the plan")

    @model_validator(mode="after")
    def _steps_known_where_used(self) -> Self:
        if self.quantization.activation_steps == "used" and self.steps.policy != "fixed":
            raise expectation('the policy "fixed" with quantization.activation_steps "used": the steps must be known first')
        return self

    @field_validator("reuse")
    @classmethod
    def _control_without_cuts(cls, reuse: ReuseSection, info: ValidationInfo) -> ReuseSection:
        """With a control network "auto" finds no cut, and named ones are refused."""
        model = info.data.get("model")
        if model is None or model.control is None or not reuse.cuts:
            return reuse
        if reuse.cuts == "auto":
            return reuse.model_copy(update={"cuts": ()})
        raise expectations([(("cuts",), list(reuse.cuts), "[] together with model.control")])

    @field_validator("steps")
    @classmethod
    def _reusing_steps_fit(cls, steps: StepsSection, info: ValidationInfo) -> StepsSection:
        sampler, cuts, model = info.data.get("sampler"), info.data.get("reuse"), info.data.get("model")
        if steps.reuse is None or sampler is None or cuts is None:
            return steps
        if model is not None and model.control is not None:
            raise expectations([(("reuse",), steps.reuse.model_dump(), "null together with model.control")])
        known, rows, listed = cuts.cuts, SAMPLERS[sampler.name].rows(sampler.steps), steps.reuse.steps or ()
        problems: list[Problem] = []
        if not known:
            problems.append((("reuse",), steps.reuse.model_dump(), '"reuse": {"cuts": "auto"}, or the name of a cut, in the plan'))
        elif known != "auto" and steps.reuse.cut is not None and steps.reuse.cut not in known:
            problems.append((("reuse", "cut"), steps.reuse.cut, one_of(steps.reuse.cut, known)))
        problems += [
            (("reuse", "steps", index), step, f"1 to {rows - 1}, steps of the chain") for index, step in enumerate(listed) if step >= rows
        ]
        if problems:
            raise expectations(problems)
        return steps

    @field_validator("target")
    @classmethod
    def _target_fits_the_plan(cls, target: TargetSection, info: ValidationInfo) -> TargetSection:
        steps, precisions, found = info.data.get("steps"), info.data.get("precisions") or (), TARGETS[target.name]
        problems: list[Problem] = [
            (("name",), target.name, f"a target with {name} engines for the precision {name}: {_having(name)}")
            for name in precisions
            if name in FLOAT_WIDTHS and name not in found.placement.high_precisions
        ]
        problems += [
            (("name",), target.name, f"a target that runs {WORDS[form]} for the precision {name}: {_storing(form)}")
            for name in precisions
            if (form := Precision.parse(name).form) not in found.placement.forms
        ]
        untimed = found.stand_in and target.measure != "engines"
        if steps is not None and steps.policy == "budget" and steps.cost == "time" and untimed:
            expected = (
                'a target that the build can time for steps.cost "time"; or target.measure "engines", beside its device; '
                'or cost "bit_operations"; or only precisions with'
            )
            lacking = [name for name in precisions if name not in PUBLISHED]
            problems += [(("name",), target.name, f"{expected} a published time ({', '.join(PUBLISHED)}), not {name}") for name in lacking]
            reuse = info.data.get("reuse")
            if reuse is not None and reuse.cuts:
                problems.append(
                    (
                        ("name",),
                        target.name,
                        'a target that the build can time for steps.cost "time" with reuse.cuts; or target.measure "engines"',
                    )
                )
        quantization = info.data.get("quantization")
        if quantization is not None and quantization.integer_layers == "faster" and found.stand_in:
            asked = 'a target that the build can time for quantization.integer_layers "faster"; or "all"'
            problems.append((("name",), target.name, asked))
        if quantization is not None and quantization.attention != "float":
            form = ATTENTION_FORMS[quantization.attention]
            if form not in found.placement.attention_forms:
                taking = " or ".join(f'"{name}"' for name, one in TARGETS.items() if form in one.placement.attention_forms)
                asked = f'a target with attention in {quantization.attention}: {taking}; or quantization.attention "float"'
                problems.append((("name",), target.name, asked))
        if problems:
            raise expectations(problems)
        return target

    @field_validator("steps")
    @classmethod
    def _fixed_steps_fit(cls, steps: StepsSection, info: ValidationInfo) -> StepsSection:
        sampler, precisions = info.data.get("sampler"), info.data.get("precisions")
        if steps.precisions is None or sampler is None or precisions is None:
            return steps  # nothing to compare, or the other side of the comparison already has its own error
        count, rows = len(steps.precisions), SAMPLERS[sampler.name].rows(sampler.steps)
        known = dict.fromkeys((*precisions, FULL_PRECISION))
        problems: list[Problem] = [
            (("precisions", index), name, one_of(name, known)) for index, name in enumerate(steps.precisions) if name not in known
        ]
        if count not in (1, rows):
            problems.append((("precisions",), steps.precisions, f"1 name, or {rows} (one for each step), not {count}"))
        if problems:
            raise expectations(problems)
        return steps

    def resolved_json(self) -> str:
        """Return the plan as JSON with every default written out, in ASCII. The bytes do not depend on where the plan lies."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
