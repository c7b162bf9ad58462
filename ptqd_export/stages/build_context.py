"""The context of a build that every stage reads: the plan, its model and its sampler, each loaded on first use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from calib.quantizers.rules.placement import HighPrecision, LayerOverrides, Placement
from calib.quantizers.rules.precision import Precision
from calib.quantizers.step_groups import FINEST_GROUPS, StepGroup, equal_groups
from calib.walk.calibration_samples import CalibrationSamples
from engines.backends.base import Backend
from engines.chain.denoiser import is_guided
from engines.chain.features import cut_name, precision_and_cut
from engines.chain.norm_guidance import NormGuidance
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.grouped_engine import GroupGraphs, open_groups
from engines.samplers import NoiseSchedule, SamplerTable
from ptqd_export.measuring.calibration_device import CalibrationDevice
from ptqd_export.measuring.measured_with import MeasuredWith
from ptqd_export.measuring.measuring_backend import measuring_backend, opened_backend
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import fingerprint, load_at_size, load_model
from ptqd_export.models.tensors.mapped_weights import map_weights
from ptqd_export.plan import FULL_PRECISION, Plan, PlanFile
from ptqd_export.plan.targets import TARGETS, Target

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from calib.walk.step_networks import BatchEvaluator

    OwnEngines: TypeAlias = Callable[["BuildContext", int | None], Backend]
    Elsewhere: TypeAlias = Callable[["BuildContext", Mapping[str, Sequence[GroupGraphs]]], AbstractContextManager[BatchEvaluator]]

GROUPS = "groups.json"
"""File in the folder of a quantized precision: the bounds between its groups of steps, falling. Without it there is a single group."""

CUTS = "cuts.json"
"""File in the folder of a precision whose graphs are cut; see `stored_cuts`."""

CutKind: TypeAlias = Literal["full", "reuse"]
CUT_KINDS: tuple[CutKind, ...] = get_args(CutKind)


class BuildContext:
    """The context of a build. Its attributes do not change.

    Args:
        plan_file: the plan.
        elsewhere: evaluates the networks of the walk elsewhere, given this context and the graphs of every network (`all_graphs`);
            None evaluates them in this process.
        engines: opens the target's own engines, for a target that the build can measure without them.
    """

    def __init__(self, plan_file: PlanFile, elsewhere: Elsewhere | None = None, engines: OwnEngines | None = None) -> None:
        self.plan_file = plan_file
        self.elsewhere = elsewhere
        self._engines = engines
        self.plan: Plan = plan_file.plan
        self.target: Target = TARGETS[self.plan.target.name]
        self.placement: Placement = self.target.placement
        self.high_precision: HighPrecision = self.plan.target.high_precision
        self.precisions = sorted((Precision.parse(name) for name in self.plan.precisions), key=lambda precision: precision.cost_key)

        self.number_of_sizes = max(1, len(self.plan.model.sizes))
        self._at_size: dict[tuple[int, int], LoadedModel] = {}

    def changed(self, plan_file: PlanFile) -> BuildContext:
        """Return the context of another plan for the same model."""
        other = BuildContext(plan_file, self.elsewhere, self._engines)
        other.model, other._at_size = self.model, self._at_size
        return other

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels; None if the plan leaves them to the model."""
        return next(iter(self.plan.model.all_sizes), None)

    @property
    def at_further_sizes(self) -> dict[tuple[int, int], BuildContext]:
        """The contexts of the same build at the plan's further sizes. All sizes share the values of the model's weights."""
        return {size: self._at(size) for size in self.plan.model.sizes[1:]}

    def _at(self, size: tuple[int, int]) -> BuildContext:
        if size not in self._at_size:
            self._at_size[size] = load_at_size(self.plan_file, self.model, size)
        section = self.plan.model.model_copy(update={"size": size, "sizes": ()})
        plan = self.plan.model_copy(update={"model": section})
        other = BuildContext(replace(self.plan_file, plan=plan), self.elsewhere, self._engines)
        other.model, other.fingerprint, other.number_of_sizes = self._at_size[size], self.fingerprint, self.number_of_sizes
        return other

    @property
    def activation_samples(self) -> int:
        """Number of states for the activation ranges at this size: the plan's are shared out among its sizes."""
        return -(-self.plan.calibration.activation_samples // self.number_of_sizes)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model, self.plan_file.conditions_path)

    @cached_property
    def model(self) -> LoadedModel:
        model = load_model(self.plan_file)
        map_weights(model.adapter.network)
        return model

    @property
    def model_settings(self) -> dict[str, Any]:
        """Fields of the plan that change the model loaded from its files."""
        settings = self.plan.model.model_dump(include={"graph", "prompts", "negative_prompt", "lora", "control", "inpaint"})
        return {**settings, "size": self.size}

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The model's noise schedule with the plan's overrides."""
        return self.model.noise_schedule.model_copy(update=self.plan.sampler.overrides)

    @cached_property
    def table(self) -> SamplerTable:
        return self.plan.sampler.record.table(self.noise_schedule)

    @property
    def quantized_precisions(self) -> list[Precision]:
        """The precisions with quantized weights, by ascending bit operations."""
        return [precision for precision in self.precisions if precision.weight_bits is not None]

    @property
    def engine_precisions(self) -> list[Precision]:
        """The precisions other than full precision, by ascending bit operations."""
        return [precision for precision in self.precisions if precision.name != FULL_PRECISION]

    @property
    def guidance(self) -> float:
        """Scale of classifier-free guidance; 1 for a network that takes the plan's guidance as an input."""
        return 1.0 if self.model.embeds_guidance else self.plan.sampler.guidance

    @property
    def guided(self) -> bool:
        return is_guided(self.guidance)

    @property
    def calibration_device(self) -> CalibrationDevice:
        return CalibrationDevice(self.plan.calibration.device, self.plan.calibration.dtype)

    @property
    def in_pieces(self) -> bool:
        """Whether the bundle's networks run in pieces."""
        return self.target.in_pieces and self.plan.target.provider == "CPU"

    @property
    def backend(self) -> Backend:
        """The backend that verifies graphs, and times those of a target that the build can run."""
        return measuring_backend(self.plan.target, self.plan.target.threads)

    @cached_property
    def measured_with(self) -> MeasuredWith:
        """What runs the networks while statistics are measured.

        Raises:
            MissingBackendError: the plan asks for the target's engines, and its runtime or device is missing.
        """
        return MeasuredWith.of(self.plan.target, self.plan.calibration.device, on_a_cluster=self.elsewhere is not None)

    @cached_property
    def measuring(self) -> Backend:
        """The backend that runs the networks while statistics are measured."""
        if self.runs_engines:
            assert self._engines is not None
            return self._engines(self, None)
        return opened_backend(self.measured_with, self.plan.target, self.plan.target.threads)

    def measuring_beside(self, rows: int) -> Backend:
        """Return the backend that runs a graph beside the networks, on at most `rows` states, while statistics are measured."""
        return self._engines(self, rows) if self.runs_engines and self._engines is not None else self.measuring

    @property
    def runs_engines(self) -> bool:
        """Whether the build runs engines of a target that it could measure without them."""
        return self.target.stand_in and self.measured_with.measure == "engines"

    @property
    def is_timed(self) -> bool:
        """Whether the build can time the target's engines."""
        return self.runs_engines or not self.target.stand_in

    def overrides(
        self, slower: Mapping[str, float] = MappingProxyType({}), noisy: Mapping[str, float] = MappingProxyType({})
    ) -> LayerOverrides:
        """Return the plan's overrides, together with the layers that were measured to be slower in integers, or noisy."""
        settings = self.plan.quantization
        return LayerOverrides(settings.keep_float, settings.keep_8bit_weights, slower, noisy, settings.weight_group, settings.low_rank)

    def steps_of(self, precision: Precision) -> list[int]:
        """Return the steps that the plan's fixed policy assigns to a precision, or all steps if it assigns none."""
        everywhere = self.everywhere(self.plan.steps.precisions or ())
        return [step for step, name in enumerate(everywhere) if name == precision.name] or list(range(self.table.steps))

    @property
    def observes_all(self) -> bool:
        """Whether all precisions share the observations of all steps."""
        return self.plan.quantization.activation_steps == "all"

    @property
    def prepares(self) -> bool:
        """Whether the plan changes the network before it is quantized."""
        settings = self.plan.quantization
        return settings.split_concatenations or settings.channel_scaling is not None or settings.rotation != "none"

    @property
    def chooses_groups(self) -> bool:
        """Whether the build chooses each precision's groups of steps."""
        return self.plan.quantization.step_groups == "auto"

    def groups(self, steps: Sequence[int]) -> list[StepGroup]:
        """Return the groups that the plan divides the steps of a precision into; where they are chosen, what they are put together from."""
        count = FINEST_GROUPS if self.chooses_groups else int(self.plan.quantization.step_groups)
        return equal_groups(steps, count, self.table.timestep)

    def everywhere(self, listed: tuple[str, ...]) -> tuple[str, ...]:
        """Return one precision per step from the plan's list, which may have a single entry for all steps."""
        return listed * self.table.steps if len(listed) == 1 else listed

    def denoiser(self, graph: Path, batch: int) -> EngineDenoiser:
        """Open the network of a graph for batches of `batch` samples."""
        return self.network([(math.inf, graph)], batch)

    def timed_denoiser(self, graph: Path, batch: int) -> EngineDenoiser:
        """Open the network of a graph on the target's engines, for batches of `batch` samples."""
        return self.network([(math.inf, graph)], batch, self.measuring if self.runs_engines else self.backend)

    def network(self, graphs: GroupGraphs, batch: int, backend: Backend | None = None) -> EngineDenoiser:
        """Open a network, given one graph per group of steps (see `network_graphs`), for batches of `batch` samples; on the backend that
        measures statistics, or on another.
        """
        branches = 2 if self.guided else 1
        engine, combine = (
            open_groups(backend or self.measuring, graphs, branches * batch),
            NormGuidance.at(self.guidance, self.model.guidance_patch),
        )
        return EngineDenoiser(engine, self.model.conditioning, self.guided, combine=combine, control=self.model.control)

    def network_at(self, folders: Mapping[str, Path], name: str, batch: int) -> CutEngines:
        """Open a network at a cut, by its name, for batches of `batch` samples, from the folders of the stages that cut the graphs."""
        full, reusing = all_graphs(folders, name)
        whole, rest = self.network(full, batch), self.network(reusing, batch)
        return CutEngines(whole.engine, whole.conditioning, whole.guided, combine=whole.combine, reusing=rest)

    @property
    def walked_precisions(self) -> tuple[str, ...]:
        """Precisions that may take steps of the plan's chain."""
        listed = self.plan.steps.precisions
        return tuple(dict.fromkeys(listed)) if listed is not None else tuple(precision.name for precision in self.precisions)

    @property
    def cut(self) -> str | None:
        """Where steps of the plan's chain reuse features, or where a budget may have them do so; None if none may. It is `auto` as long as
        nothing has named that cut.
        """
        cuts, section = self.plan.reuse.cuts, self.plan.steps.reuse
        if not cuts or (section is None and self.plan.steps.policy != "budget"):
            return None
        return (None if section is None else section.cut) or (cuts if isinstance(cuts, str) else cuts[0])

    @property
    def cut_networks(self) -> tuple[str, ...]:
        """Names of the networks at every cut of the plan, after the cuts have been named."""
        return tuple(cut_name(precision.name, cut) for cut in self.plan.reuse.cuts for precision in self.precisions)

    @property
    def samples(self) -> CalibrationSamples:
        """The calibration samples."""
        conditioning = self.model.conditioning
        rows = None if conditioning is None else conditioning.rows
        return CalibrationSamples.draw(self.plan.calibration.seed, self.model.sample_shape, rows, self.plan.calibration.samples)


def graph_path(folders: Mapping[str, Path], precision: str) -> Path:
    """Return the path of a precision's graph in the folder of its stage."""
    return folders[precision] / f"{precision}.onnx"


def network_graphs(folders: Mapping[str, Path], precision: str) -> GroupGraphs:
    """Return the paths of a precision's graphs in the folder of its stage: one per group of steps, the noisiest first, each with the bound
    that its timesteps lie below.
    """
    path = graph_path(folders, precision)
    stored = path.with_name(GROUPS)
    bounds: list[float] = json.loads(stored.read_text()) if stored.exists() else []
    return [(math.inf, path), *((below, group_path(path, number)) for number, below in enumerate(bounds, start=1))]


def all_graphs(folders: Mapping[str, Path], name: str) -> tuple[GroupGraphs, ...]:
    """Return the graphs of a network by its name (see `network_graphs`): of one at a cut, those of each of the `CUT_KINDS`."""
    precision, cut = precision_and_cut(name)
    graphs = network_graphs(folders, precision)
    return (graphs,) if cut is None else tuple([(below, cut_path(path, cut, kind)) for below, path in graphs] for kind in CUT_KINDS)


def group_path(path: Path, number: int) -> Path:
    """Return the path of the graph of a group of steps, beside the graph of the noisiest group, whose number is 0."""
    return path if number == 0 else path.with_name(f"{path.stem}.group_{number}.onnx")


def cut_path(path: Path, cut: str, kind: CutKind) -> Path:
    """Return the path of a graph of a cut, beside the graph that was cut."""
    return path.with_name(f"{path.stem}.{cut}.{kind}.onnx")


def stored_cuts(folder: Path) -> dict[str, Any]:
    """Return what is stored of the cuts in the folder of a precision, by name: `layers` and `bit_operations_saved_all` of a step that
    reuses features. Empty if the graphs are not cut.
    """
    path = folder / CUTS
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def schedule_path(folder: Path) -> Path:
    """Return the path of the schedule in the folder of its stage."""
    return folder / "schedule.json"


__all__ = [
    "CUTS",
    "CUT_KINDS",
    "FULL_PRECISION",
    "BuildContext",
    "cut_path",
    "graph_path",
    "group_path",
    "network_graphs",
    "schedule_path",
    "stored_cuts",
]
