"""The section `target`: where the engines run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from calib.quantizers.rules.placement import HighPrecision
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.untrusted.limits import BATCH
from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.section import Section
from ptqd_export.plan.targets import TARGETS


class BatchSection(Section):
    """Number of samples that may walk a chain at once."""

    min: int = Field(default=1, ge=1, le=BATCH, description="smallest number of samples in one network call")
    opt: int = Field(default=8, ge=1, le=BATCH, description="number of samples that the engines are tuned for")
    max: int = Field(default=64, ge=1, le=BATCH, description="largest number of samples in one network call; memory grows with it")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise expectation("min, opt and max in ascending order")
        return self


class TargetSection(Section):
    """Where the engines run."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"] = Field(description="the runtime")
    provider: Provider = Field(default="CPU", description="device of ONNX Runtime: CPU, or CUDA for an NVIDIA GPU")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="threads of a network call in the build; null takes all cores that this process may use"
    )
    benchmark_batch: int = Field(default=8, ge=1, le=BATCH, description="batch size at which the build times a step")
    high_precision: HighPrecision = Field(
        default=None,
        validate_default=True,
        description="type of unquantized values in the graphs; null takes the target's own: fp16 on TensorRT, else fp32",
    )
    batch: BatchSection | None = Field(
        default=None,
        validate_default=True,
        description="for TensorRT: batch sizes that its engines take; null takes every default (ONNX Runtime takes any batch size)",
    )
    measure: Literal["engines", "torch", "cpu"] | None = Field(
        default=None,
        description="what runs the networks while statistics are measured: the target's engines, PyTorch on calibration.device, or ONNX "
        "Runtime's exact mode on the CPU; null takes the engines where the target's device is present, else PyTorch or the CPU",
    )
    workspace_gib: float | None = Field(
        default=None, gt=0, description="for TensorRT: most memory that its builder may use, in GiB; null allows all of the device's"
    )

    @field_validator("provider")
    @classmethod
    def _provider_of_onnxruntime(cls, provider: Provider, info: ValidationInfo) -> Provider:
        target = TARGETS.get(info.data.get("name", ""))
        if provider != "CPU" and target is not None and target.profiled:
            raise expectation(f'"CPU" for the target {target.name}, whose engines run on the GPU anyway')
        return provider

    @field_validator("high_precision", mode="before")
    @classmethod
    def _own_high_precision(cls, chosen: object, info: ValidationInfo) -> object:
        target = TARGETS.get(info.data.get("name", ""))
        if chosen is None:
            return "fp32" if target is None else target.placement.high_precisions[0]  # an unknown target already has an error of its own
        return chosen

    @field_validator("high_precision")
    @classmethod
    def _fits_the_target(cls, chosen: HighPrecision, info: ValidationInfo) -> HighPrecision:
        target = TARGETS.get(info.data.get("name", ""))
        if target is not None and chosen not in target.placement.high_precisions:
            known = " or ".join(f'"{name}"' for name in target.placement.high_precisions)
            raise expectation(f"{known} for the target {target.name}")
        return chosen

    @field_validator("batch")
    @classmethod
    def _profile_where_engines_have_one(cls, batch: BatchSection | None, info: ValidationInfo) -> BatchSection | None:
        target = TARGETS.get(info.data.get("name", ""))
        if target is None or target.profiled:
            return batch or (None if target is None else BatchSection())
        if batch is not None:
            raise expectation(f"null for the target {target.name}, whose engines take any batch")
        return None

    @field_validator("workspace_gib")
    @classmethod
    def _workspace_where_engines_are_built(cls, gib: float | None, info: ValidationInfo) -> float | None:
        target = TARGETS.get(info.data.get("name", ""))
        if gib is not None and target is not None and not target.profiled:
            raise expectation(f"null for the target {target.name}, which builds no engines ahead of time")
        return gib
