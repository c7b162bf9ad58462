"""Store a bundle's graphs as optimized by ONNX Runtime for this machine, with their weights in a memory-mapped file.

Mapped weights are not copied to the heap, those that no kernel reads are never loaded, and processes that sample from the same bundle share
them. Engines also open sooner, since nothing is optimized again. Results are identical to the last bit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.backends.cached_engine import CachedEngine
from engines.backends.onnxruntime.onnxruntime_session import import_onnxruntime, open_session, session_config, shift_of
from engines.bundle.bundle import Bundle
from engines.errors import PtqdError
from engines.host.files import sha256, sync, sync_tree
from engines.host.machine import instructions, processor, told_instructions
from engines.host.room import check_room, naming_full_disks
from engines.untrusted.external_data import external_files, graph_files
from engines.untrusted.untrusted_json import read_json_object

DIGEST_LETTERS = 16
RECORD = "optimized.json"
FILES = "files"
"""Key in the record of the hashes of the files beside it."""


@dataclass(frozen=True)
class OptimizedGraphs:
    """The optimized graphs of one bundle.

    Attributes:
        folder: the bundle's `local/optimized`, with one folder per kind of machine and, inside it, one per graph.
        digests: SHA-256 of the bundle's files by path.
    """

    folder: Path
    digests: Mapping[Path, str]

    @classmethod
    def of(cls, bundle: Bundle) -> OptimizedGraphs:
        digests = {bundle.folder / name: record.sha256 for name, record in bundle.manifest.files.items()}
        return cls(bundle.folder / "local" / "optimized", digests)

    def find(self, graph: Path) -> Path | None:
        """Return the optimized graph for this machine, or None if there is none.

        Raises:
            PtqdError: the optimized graph was changed or damaged.
        """
        place = self._place(graph)
        if not place.exists():
            return None
        if not _is_whole(place, graph.name):
            raise PtqdError(
                "An optimized graph was changed or damaged.",
                found=f"{place}: does not match the hashes in {RECORD}",
                mend="run `ptqd-export engines BUNDLE`, which recreates it, or remove that folder",
            )
        return place / graph.name

    def get(self, graph: Path) -> CachedEngine:
        """Return the optimized graph for this machine, creating it if it is missing. No other process may be writing to the bundle.

        Raises:
            PtqdError: the runtime refuses the graph, or the disk is full; nothing is left behind.
        """
        begin, place = time.perf_counter(), self._place(graph)
        is_there = _is_whole(place, graph.name)
        if not is_there:
            shutil.rmtree(place, ignore_errors=True)
            _make(graph, place)
        return CachedEngine(place / graph.name, time.perf_counter() - begin, is_there)

    def keep(self, graphs: Collection[Path]) -> None:
        """Remove everything for this machine except these graphs: those of replaced graphs, and the leftovers of killed writers."""
        kept = {self._place(graph) for graph in graphs}
        for folder in (self.folder / _machine()).glob("*"):
            if folder not in kept:
                shutil.rmtree(folder)

    def _place(self, graph: Path) -> Path:
        files = graph_files(graph)
        digest = hashlib.sha256("".join(self.digests[file] for file in files if file in self.digests).encode()).hexdigest()
        return self.folder / _machine() / f"{graph.stem}-{digest[:DIGEST_LETTERS]}"


@functools.cache
def _machine() -> str:
    """Return a folder name for everything that an optimized graph depends on besides the original graph.

    The runtime chooses kernels by the processor's instructions, and lays out the weights for them. The weight shift is not included: it is
    measured once and changes no value.
    """
    ort = import_onnxruntime()
    about = {
        "runtime": [ort.__version__, ort.get_build_info()],
        "processor": [processor(), sorted(instructions())],
        "told": sorted(told_instructions()),
        "config": dict(session_config("fast")),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"onnxruntime-{ort.__version__}-{digest[:DIGEST_LETTERS]}"


def _weights(graph: Path) -> Path:
    """Return the path of an optimized graph's external weights, if it has any."""
    return graph.with_name(f"{graph.name}.data")


def _make(graph: Path, place: Path) -> None:
    """Have the runtime write the optimized form of a graph; the folder gets its final name once it is complete."""
    check_room(place, 2 * sum(file.stat().st_size for file in graph_files(graph)), f"the optimized graph {graph.name}")
    with naming_full_disks(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
            made = Path(temporary) / place.name
            made.mkdir()
            _optimize(graph, made / graph.name)
            digests = {file.name: sha256(file) for file in made.iterdir()}
            (made / RECORD).write_text(json.dumps({FILES: digests}, indent=1) + "\n")
            sync_tree(made)
            made.rename(place)
            sync(place.parent)


def _optimize(graph: Path, output: Path) -> None:
    open_session(graph, session_config("fast"), optimized=output, shift=shift_of(graph, "fast"))


def _is_whole(place: Path, name: str) -> bool:
    """Whether the files are unchanged and the graph reads no others."""
    graph = place / name
    try:
        digests = read_json_object(place / RECORD)[FILES]
        files = [file for file in (graph, _weights(graph)) if file.exists()]
        return digests == {file.name: sha256(file) for file in files} and external_files(graph) <= {_weights(graph).name}
    except (PtqdError, KeyError, ValueError, OSError):
        return False
