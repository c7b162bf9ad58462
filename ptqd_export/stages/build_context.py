"""What every stage of a build looks at: the plan, its model and its sampler, each loaded when it is first needed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calib.correction.step_fit import CorrectionChoice
from calib.quantizers.rules.placement import HighPrecision, LayerOverrides, Placement
from calib.quantizers.rules.precision import Precision
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.fit import FitNetworks, FitSettings
from calib.walk.policy import FixedPolicy, SnrPolicy
from calib.walk.step_networks import Elsewhere
from engines.backends.base import Backend
from engines.backends.onnxruntime.onnxruntime_session import check_provider
from engines.chain.schedule import SamplerRecord
from engines.cluster.session import Cluster
from engines.errors import UsageError
from engines.networks.engine_denoiser import EngineDenoiser
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from ptqd_export.measuring.calibration_device import CalibrationDevice
from ptqd_export.measuring.cluster_networks import ClusterTarget, NetworkOpener, evaluating_on
from ptqd_export.measuring.measuring_backend import measuring_backend
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import fingerprint, load_model
from ptqd_export.plan import FULL_PRECISION, Plan, PlanFile
from ptqd_export.plan.targets import TARGETS, Target


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
        return measuring_backend(self.plan.target, self.plan.target.threads)

    def overrides(self, slower: Mapping[str, float] = MappingProxyType({})) -> LayerOverrides:
        """The plan's, and the layers that were measured to be slower in integers."""
        settings = self.plan.quantization
        return LayerOverrides(settings.keep_float, settings.keep_8bit_weights, slower)

    @property
    def fit_settings(self) -> FitSettings:
        """What is fitted; a budget is spent on a first fit, whose precisions the paper's rule chooses."""
        plan, listed = self.plan, self.plan.steps.precisions
        candidates = tuple(precision.name for precision in self.precisions)
        return FitSettings(
            sampler=SamplerRecord(name=self.table.name, steps=plan.sampler.steps, eta=plan.sampler.eta, guidance=plan.sampler.guidance),
            noise_schedule=self.noise_schedule,
            correction=CorrectionChoice(plan.correction.mode, plan.correction.variance, frozenset(plan.correction.parts)),
            policy=plan.steps.policy,
            choose=SnrPolicy(candidates) if listed is None else FixedPolicy(self._everywhere(listed)),
            samples=self.samples,
            trajectory=plan.calibration.trajectory,
            batch_size=plan.calibration.batch_size,
        )

    def fit_networks(self, graphs: Mapping[str, Path], batch: int) -> FitNetworks:
        """The networks of the graphs in the folders of the stages that made them, for batches of this many samples."""
        return FitNetworks({name: self.denoiser(graph_path(graphs, name), batch) for name in graphs}, FULL_PRECISION)

    @contextlib.contextmanager
    def walked_networks(self, graphs: Mapping[str, Path]) -> Iterator[FitNetworks]:
        """The networks of a walk: opened here or, while the block runs, on the cluster."""
        calibration, target = self.plan.calibration, self.plan.target
        if self.cluster is None:
            yield self.fit_networks(graphs, calibration.batch_size)
            return
        on_worker = ClusterTarget(target.name, target.provider, target.high_precision)
        opener = NetworkOpener(on_worker, self.model.conditioning, self.plan.sampler.guidance, calibration.batch_size)
        files = {name: graph_path(graphs, name) for name in graphs}
        batches = math.ceil(calibration.samples / calibration.batch_size)
        with evaluating_on(self.cluster, opener, files, FULL_PRECISION, batches) as evaluator:
            yield FitNetworks({name: Elsewhere(name) for name in files}, FULL_PRECISION, evaluator)

    def steps_of(self, precision: Precision) -> list[int]:
        """The steps that the plan's fixed policy gives a precision; all of them where it gives it none."""
        everywhere = self._everywhere(self.plan.steps.precisions or ())
        return [step for step, name in enumerate(everywhere) if name == precision.name] or list(range(self.table.steps))

    def _everywhere(self, listed: tuple[str, ...]) -> tuple[str, ...]:
        """A precision for each step from the plan's list, which may name one for all."""
        return listed * self.table.steps if len(listed) == 1 else listed

    def check(self) -> None:
        """What a plan can be wrong about once its model is known; called before anything is written.

        Raises:
            UsageError: it does not fit.
            MissingBackendError: there is no such device to calibrate or to run on.
        """
        self.calibration_device.check()
        check_provider(self.plan.target.provider)
        _ = self.fit_settings.level_shift
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

    @property
    def samples(self) -> CalibrationSamples:
        """The samples that are calibrated on."""
        conditioning = self.model.conditioning
        rows = None if conditioning is None else conditioning.rows
        return CalibrationSamples.draw(self.plan.calibration.seed, self.model.sample_shape, rows, self.plan.calibration.samples)


def graph_path(folders: Mapping[str, Path], precision: str) -> Path:
    """The graph in the folder of the stage that made it."""
    return folders[precision] / f"{precision}.onnx"


__all__ = ["FULL_PRECISION", "BuildContext", "graph_path"]
