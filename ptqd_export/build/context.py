"""What every stage of a build looks at: the plan, its model and its sampler, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calib.placement import Exceptions, HighPrecision, Placement
from calib.precision import Precision
from calib.shift import check_shift
from engines.backends.base import Backend
from engines.backends.choice import mode_of
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.backends.onnxruntime_session import check_provider
from engines.cluster.session import Cluster
from engines.errors import UsageError
from engines.network import EngineDenoiser
from engines.noise import NoiseSource
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from ptqd_export.calibration_device import CalibrationDevice
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import fingerprint, load_model
from ptqd_export.plan import FULL_PRECISION, Plan, PlanFile
from ptqd_export.schedules.calibration_noise import calibration_noise
from ptqd_export.stand_in import standing_in
from ptqd_export.targets import TARGETS, Target
from ptqd_export.walk_work import WalkWork


class BuildContext:
    """See the module. Attributes are computed once and never change.

    Args:
        plan_file: the plan.
        cluster: where the statistics are measured; None is here.
    """

    def __init__(self, plan_file: PlanFile, cluster: Cluster | None = None) -> None:
        self.plan_file = plan_file
        self.cluster = cluster
        self.plan: Plan = plan_file.plan
        self.target: Target = TARGETS[self.plan.target.name]
        self.placement: Placement = self.target.placement
        self.high_precision: HighPrecision = self.plan.target.high_precision
        self.precisions = sorted((Precision.parse(name) for name in self.plan.precisions), key=lambda precision: precision.cost_key)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model, self.plan_file.conditions_path)

    @cached_property
    def model(self) -> LoadedModel:
        return load_model(self.plan_file)

    @property
    def model_settings(self) -> dict[str, Any]:
        """What the plan asks to be done with the model's files."""
        return self.plan.model.model_dump(include={"prompts", "negative_prompt", "lora"})

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The model's, with the plan's overrides."""
        return self.model.noise_schedule.model_copy(update=self.plan.sampler.overrides)

    @cached_property
    def table(self) -> SamplerTable:
        sampler = self.plan.sampler
        return compile_sampler(sampler.name, sampler.steps, sampler.eta, self.noise_schedule)

    @property
    def quantized_precisions(self) -> list[Precision]:
        """Those with integer weights, going up in bit operations."""
        return [precision for precision in self.precisions if precision.weight_bits is not None]

    @property
    def engine_precisions(self) -> list[Precision]:
        """Those that differ from full precision, going up in bit operations."""
        return [precision for precision in self.precisions if precision.name != FULL_PRECISION]

    @property
    def guided(self) -> bool:
        return self.plan.sampler.guidance != 1.0

    @property
    def calibration_device(self) -> CalibrationDevice:
        return CalibrationDevice(self.plan.calibration.device, self.plan.calibration.dtype)

    @property
    def in_pieces(self) -> bool:
        """Whether the bundle's networks run in pieces."""
        return self.target.in_pieces and self.plan.target.provider == "CPU"

    @property
    def backend(self) -> Backend:
        """What runs the graphs in the build."""
        target = self.plan.target
        return standing_in(OnnxRuntimeBackend(target.threads, target.provider, mode_of(target.name, target.provider)), self.high_precision)

    def exceptions(self, slower: Mapping[str, float] = MappingProxyType({})) -> Exceptions:
        """The plan's, and the layers that were measured to be slower in integers."""
        settings = self.plan.quantization
        return Exceptions(settings.keep_float, settings.keep_8bit_weights, slower)

    @property
    def walk_work(self) -> WalkWork:
        """What the graphs of a walk are run with."""
        target, guidance, batch = self.plan.target, self.plan.sampler.guidance, self.plan.calibration.batch_size
        return WalkWork(target.name, target.provider, self.high_precision, self.model.conditioning, guidance, batch)

    def steps_of(self, precision: Precision) -> list[int]:
        """The steps that the plan's fixed policy gives a precision; all of them where it gives it none."""
        listed = self.plan.steps.precisions or ()
        everywhere = listed * self.table.steps if len(listed) == 1 else listed
        return [step for step, name in enumerate(everywhere) if name == precision.name] or list(range(self.table.steps))

    def check(self) -> None:
        """What a plan can be wrong about once its model is known; called before anything is written.

        Raises:
            UsageError: it does not fit.
            MissingBackendError: there is no such device to calibrate or to run on.
        """
        self.calibration_device.check()
        check_provider(self.plan.target.provider)
        _ = self.table
        if self.plan.correction.variance == "shift":
            check_shift(self.table, self.plan.calibration.trajectory)
        conditioning = self.model.conditioning
        if self.guided and (conditioning is None or conditioning.null is None):
            raise UsageError(
                "The model cannot be guided.",
                found=f"guidance {self.plan.sampler.guidance:g}, and a model without a null condition",
                expected="guidance 1, or conditions with their null values",
                mend="set sampler.guidance to 1",
            )

    def denoiser(self, graph: Path, batch: int) -> EngineDenoiser:
        """The network of a graph as it will run on batches of this many samples."""
        branches = 2 if self.guided else 1
        return EngineDenoiser(self.backend.open(graph, branches * batch), self.model.conditioning, self.guided)

    def noise(self) -> NoiseSource:
        return calibration_noise(self.plan.calibration.seed, self.model.sample_shape)


def graph_path(folders: Mapping[str, Path], precision: str) -> Path:
    """The graph in the folder of the stage that made it."""
    return folders[precision] / f"{precision}.onnx"


__all__ = ["FULL_PRECISION", "BuildContext", "graph_path"]
