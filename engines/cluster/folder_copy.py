"""A folder's files on every machine of a cluster, with or without a shared file system. Ray sends them only to machines that lack them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.cluster.session import import_ray
from engines.errors import PtqdError
from engines.host.files import replacing, sha256
from engines.host.machine import ANY_MACHINE

PIECE = 64 * 2**20
"""Bytes of a file that are sent as one object."""


@dataclass(frozen=True)
class FolderCopy:
    """A folder of the machine that started the work, with its content for machines that lack it.

    Attributes:
        folder: path on the machine that started the work.
        digests: sha256 by file name, relative to the folder.
        pieces: references to the pieces of each file, in order, for machines that lack the file; empty if no machine does.
    """

    folder: Path
    digests: Mapping[str, str]
    pieces: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, ray: Any, folder: Path, names: Sequence[str]) -> FolderCopy:
        """Look for the same files at the same path on every machine. Read them into Ray only if a machine lacks them."""
        folder = folder.absolute()
        copy = cls(folder, {name: sha256(folder / name) for name in names}, {})
        return copy if copy._is_everywhere(ray) else cls(folder, copy.digests, {name: _pieces(ray, folder / name) for name in names})

    @classmethod
    def of_bundle(cls, ray: Any, bundle: Bundle) -> FolderCopy:
        """Copy the manifest, every file that it names, and the engines that any machine can open. Each file is verified again where it is
        used.
        """
        engines = sorted((bundle.folder / "local" / ANY_MACHINE / "engines").glob("*.engine"))
        built = (path.relative_to(bundle.folder).as_posix() for engine in engines for path in (engine, engine.with_suffix(".json")))
        return cls.of(ray, bundle.folder, [MANIFEST, *bundle.manifest.files, *built])

    def local(self) -> Path:
        """Return a folder of this machine with the files: the original path, or a copy that this machine's workers share.

        Raises:
            PtqdError: this machine lacks the files, but no machine did when the work started.
        """
        if self.is_here():
            return self.folder
        if not self.pieces:
            raise PtqdError(
                "A machine that joined the cluster later lacks the input files.",
                found=f"{self.folder} is missing there, or its files differ",
                expected="the same files as on the machine that started the work",
                mend="run the same command again: it resumes, with all machines of the cluster at that time",
            )
        digest = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()
        copied = Path(tempfile.gettempdir()) / f"ptqd-{os.getuid()}-{digest[:16]}"
        for name, expected in self.digests.items():
            if not _matches(copied / name, expected):
                _write(copied / name, self.pieces[name])
        return copied

    def is_here(self) -> bool:
        """Whether this machine has the same files at the same path."""
        return all(_matches(self.folder / name, digest) for name, digest in self.digests.items())

    def _is_everywhere(self, ray: Any) -> bool:
        own = ray.get_runtime_context().get_node_id()
        others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look = ray.remote(FolderCopy.is_here)
        return all(ray.get([look.options(num_cpus=0, scheduling_strategy=strategy(node, soft=False)).remote(self) for node in others]))


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _pieces(ray: Any, path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [ray.put(np.frombuffer(piece, np.uint8)) for piece in iter(lambda: file.read(PIECE), b"")]


def _write(path: Path, pieces: Sequence[Any]) -> None:
    ray = import_ray()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            file.write(ray.get(piece).tobytes())
