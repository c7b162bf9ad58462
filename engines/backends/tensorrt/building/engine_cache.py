"""Cache engines on disk, keyed by everything that they depend on. Concurrent requests build an engine only once."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.cached_engine import CachedEngine
from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.backends.tensorrt.building.engine_builder import OnProgress, build_engine
from engines.backends.tensorrt.device.device_identity import DeviceIdentity, device_identity
from engines.errors import PtqdError, UsageError
from engines.host.files import remove_parts, replacing, sha256, write_text
from engines.host.locks import locked
from engines.host.room import check_room
from engines.untrusted.external_data import graph_files
from engines.untrusted.untrusted_json import read_json_object

DIGEST_LETTERS = 16
ENGINE = "engine"
"""Key of the engine's own hash in its record."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on.

    Attributes:
        graph: SHA-256 of the graph and of the weights beside it.
        flavour: flavour of TensorRT.
        version: version of the flavour.
        device: compute capability and driver.
        options: all other build options.
    """

    graph: tuple[str, ...]
    flavour: str
    version: str
    device: DeviceIdentity
    options: dict[str, object]

    @classmethod
    def of(cls, spec: BuildSpec) -> EngineKey:
        """Return the key of an engine on this machine.

        Raises:
            MissingBackendError: the flavour is not installed, or needs a device and there is none.
        """
        version = spec.traits.load().__version__
        return cls(
            tuple(sha256(file) for file in graph_files(spec.graph)), spec.flavour, version, device_identity(spec.traits), spec.options
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:DIGEST_LETTERS]


class EngineCache:
    """A folder of engines. If two processes request the same engine at once, one builds it and the other waits.

    Args:
        folder: folder of the engines, created when the first engine is built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, spec: BuildSpec) -> Path:
        """Return the path of an engine that was already built.

        Raises:
            UsageError: no engine was built for this graph, flavour, version, device and options.
            PtqdError: the engine was changed or damaged.
        """
        path = self._path(spec, EngineKey.of(spec))
        if not path.exists():
            raise UsageError(
                "There is no engine of this graph for this machine.",
                found=f"no {path}",
                expected=f"an engine of {spec.graph.name} for {spec.flavour}",
                mend="run `ptqd-export engines BUNDLE`",
            )
        if not _is_whole(path):
            raise PtqdError(
                "An engine was changed or damaged.",
                found=f"{path}: does not match the hash in {_record(path).name} beside it",
                mend="run `ptqd-export engines BUNDLE`, which rebuilds it",
            )
        return path

    def get(self, spec: BuildSpec, on_progress: OnProgress = lambda _: None) -> CachedEngine:
        """Return the engine, building it if it is missing or damaged.

        Raises:
            PtqdError: the engine cannot be built; nothing is left behind.
        """
        key, begin = EngineKey.of(spec), time.perf_counter()
        path = self._path(spec, key)
        with locked(path):
            from_cache = path.exists() and _is_whole(path)
            if not from_cache:
                self._build(spec, key, path, on_progress)
        return CachedEngine(path, time.perf_counter() - begin, from_cache)

    def _build(self, spec: BuildSpec, key: EngineKey, path: Path, on_progress: OnProgress) -> None:
        timings = self.folder / f"{spec.flavour}-{key.version}-{key.device.compute_capability}.timings"
        remove_parts(self.folder, path.name)
        check_room(path, sum(file.stat().st_size for file in graph_files(spec.graph)), f"the engine of {spec.graph.name}")
        with replacing(path) as temporary:
            build_engine(spec, temporary, timing_cache=timings if spec.traits.timing_cache else None, on_progress=on_progress)
            write_text(_record(path), json.dumps({**asdict(key), ENGINE: sha256(temporary)}, sort_keys=True, indent=1) + "\n")

    def _path(self, spec: BuildSpec, key: EngineKey) -> Path:
        return self.folder / f"{spec.graph.stem}-{key.digest}.engine"


def _record(engine: Path) -> Path:
    """Return the path of the file beside an engine that records its dependencies and its hash."""
    return engine.with_suffix(".json")


def _is_whole(engine: Path) -> bool:
    try:
        return read_json_object(_record(engine)).get(ENGINE) == sha256(engine)
    except UsageError:
        return False
