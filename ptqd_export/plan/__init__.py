"""The plan: what a user wants to build, as data. One module for each section, `plan.py` for the whole plan, `plan_file.py` to read it."""

from __future__ import annotations

from ptqd_export.plan.calibration import CalibrationSection
from ptqd_export.plan.correction import CorrectionSection
from ptqd_export.plan.graph_section import GraphInputSection, GraphSection, NoiseSection
from ptqd_export.plan.model import FACTORY, ControlKind, ControlSection, InpaintSection, LoraSection, ModelSection
from ptqd_export.plan.plan import Plan
from ptqd_export.plan.plan_file import PlanFile, load_plan, plan_of
from ptqd_export.plan.quantization import QuantizationSection, ReconstructionSection
from ptqd_export.plan.reuse import ReuseSection, ReusingStepsSection
from ptqd_export.plan.sampler import SamplerSection
from ptqd_export.plan.section import Section
from ptqd_export.plan.steps import FULL_PRECISION, Cost, StepsSection
from ptqd_export.plan.target import BatchSection, TargetSection

__all__ = [
    "FACTORY",
    "FULL_PRECISION",
    "BatchSection",
    "CalibrationSection",
    "ControlKind",
    "ControlSection",
    "CorrectionSection",
    "Cost",
    "GraphInputSection",
    "GraphSection",
    "InpaintSection",
    "LoraSection",
    "ModelSection",
    "NoiseSection",
    "Plan",
    "PlanFile",
    "QuantizationSection",
    "ReconstructionSection",
    "ReuseSection",
    "ReusingStepsSection",
    "SamplerSection",
    "Section",
    "StepsSection",
    "TargetSection",
    "load_plan",
    "plan_of",
]
