"""The TensorRT backend: opens a bundle's engines, which `ptqd-export engines` built."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import BuildError
from engines.backends.tensorrt.building.engine_cache import EngineCache
from engines.backends.tensorrt.device.arena import Arena
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.device.device_identity import check_precision
from engines.backends.tensorrt.device.update_kernel import UpdateKernels
from engines.backends.tensorrt.flavour import FLAVOURS, Flavour, FlavourName
from engines.backends.tensorrt.tensorrt_engine import OpenOptions, RefitError, TensorRtEngine
from engines.errors import PtqdError
from engines.host.machine import ANY_MACHINE, machine_name
from engines.terminal.progress import fraction_bar
from engines.terminal.verbosity import detail
from engines.untrusted.changed_graph import write_changed


class Profile(Protocol):
    """Rows per network call; see `BatchProfile`."""

    @property
    def min(self) -> int: ...
    @property
    def opt(self) -> int: ...
    @property
    def max(self) -> int: ...


class TensorRtBackend:
    """An `engines.backends.base.ReweightingBackend`. All engines that one backend opens share one arena.

    Args:
        settings: settings that the engines were built with.
        folder: folder of the bundle.
        cuda_graphs: see `OpenOptions`.

    Raises:
        MissingBackendError: there is no device; or, when a graph is opened, the device is too old for its precision.
    """

    def __init__(self, settings: EngineSettings, folder: Path, *, cuda_graphs: bool = True) -> None:
        self._settings = settings
        self._cache = engine_cache(folder, settings.flavour)
        runtime_cache = folder / "local" / machine_name() / f"{settings.flavour}.kernels"
        self._options = OpenOptions(cuda_graphs, runtime_cache)
        self._cuda = Cuda()
        self._arena: Callable[[], Arena | None] = lambda: None
        self._not_refittable = set[tuple[Path, tuple[str, ...]]]()

    @property
    def arena(self) -> Arena:
        """The arena of the open engines. It is freed with the last of them; engines that are opened later share a new one."""
        arena = self._arena()
        if arena is None:
            arena = Arena(self._cuda)
            self._arena = weakref.ref(arena)
        return arena

    def open(self, graph: Path, rows: int) -> TensorRtEngine:
        engine = TensorRtEngine(self.find(graph), self._settings.traits, self.arena, self._options)
        engine.prepare(rows)
        return engine

    def open_with(self, graph: Path, rows: int, constants: Mapping[str, NDArray[Any]]) -> TensorRtEngine:
        """Open an engine with other constants; see `ReweightingBackend`.

        An engine in which they can be exchanged is built once for each set of names, and kept; TensorRT then refits it. Where TensorRT
        cannot, an engine of the changed graph is built, and not kept.
        """
        check_precision(precision_of(graph), self._cuda)
        names = tuple(sorted(constants))
        if (graph, names) not in self._not_refittable:
            try:
                return self._refitted(graph, rows, names, constants)
            except (BuildError, RefitError) as error:
                self._not_refittable.add((graph, names))
                detail(f"{graph.stem}: built again with the changed weights, because it cannot be refitted ({str(error).splitlines()[0]})")
        return self._rebuilt(graph, rows, constants)

    def _refitted(self, graph: Path, rows: int, names: tuple[str, ...], constants: Mapping[str, NDArray[Any]]) -> TensorRtEngine:
        with fraction_bar(f"{graph.stem}, refittable") as show:
            built = self._cache.get(self._settings.spec(graph, names), lambda progress: show(progress.fraction, progress.phase))
        engine = TensorRtEngine(built.path, self._settings.traits, self.arena, self._options, constants)
        engine.prepare(rows)
        if self._settings.traits.deferred_weights:
            self.arena.require(engine)  # loads and refits them now, while another engine can still be built
        return engine

    def _rebuilt(self, graph: Path, rows: int, constants: Mapping[str, NDArray[Any]]) -> TensorRtEngine:
        self._cache.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._cache.folder, prefix="changed-") as folder, fraction_bar(f"{graph.stem} with a LoRA") as show:
            try:
                changed = write_changed(graph, constants, Path(folder))
            except (ValueError, OSError) as error:
                found = f"{graph}: {error}"
                raise PtqdError("The graph with a LoRA cannot be written.", found=found, expected="room beside the engines") from error
            built = EngineCache(Path(folder)).get(self._settings.spec(changed), lambda progress: show(progress.fraction, progress.phase))
            engine = TensorRtEngine(built.path, self._settings.traits, self.arena, self._options)
        engine.prepare(rows)
        return engine

    def find(self, graph: Path) -> Path:
        """Return the path of a graph's engine.

        Raises:
            MissingBackendError: the device is too old for the graph's precision.
            UsageError: no engine was built for this machine.
            PtqdError: the engine was changed or damaged.
        """
        check_precision(precision_of(graph), self._cuda)
        return self._cache.find(self._settings.spec(graph))

    @cached_property
    def update_kernels(self) -> UpdateKernels:
        """The kernels of the sampler's step, on the engines' device."""
        return UpdateKernels(self._cuda)


@dataclass(frozen=True)
class EngineSettings:
    """How the engines of a bundle are built. The same settings are used to build the engines and to find them.

    Attributes:
        flavour: flavour of TensorRT.
        profile: see `BuildSpec`.
        workspace_gib: see `BuildSpec`.
    """

    flavour: FlavourName
    profile: BatchProfile
    workspace_gib: float | None = None

    @classmethod
    def of(cls, flavour: FlavourName, profile: Profile, workspace_gib: float | None) -> EngineSettings:
        """Build the settings from the values in a manifest."""
        return cls(flavour, BatchProfile(profile.min, profile.opt, profile.max), workspace_gib)

    @property
    def traits(self) -> Flavour:
        return FLAVOURS[self.flavour]

    def spec(self, graph: Path, refittable: tuple[str, ...] = ()) -> BuildSpec:
        return BuildSpec(graph, self.flavour, self.profile, self.workspace_gib, refittable=refittable)


def precision_of(graph: Path) -> str:
    """Return the precision of a graph by its name; that of a group, cut or size has more after the first dot."""
    return graph.name.split(".")[0]


def engine_cache(folder: Path, flavour: FlavourName) -> EngineCache:
    """Return the engine cache of a bundle. Portable engines can move with the bundle; others are kept separately for each machine."""
    place = ANY_MACHINE if FLAVOURS[flavour].portable else machine_name()
    return EngineCache(folder / "local" / place / "engines")
