"""Writes the files of a bundle, and records their hashes and sizes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from engines.bundle.manifest import FileRecord, PiecesRecord
from engines.host.files import replacing, sha256, write_text
from engines.host.room import naming_full_disks
from engines.untrusted.external_data import graph_of
from ptqd_export.stages.finish.pieces import Shared, write_in_pieces, write_whole


class BundleWriter:
    """Writes files atomically, and records their hashes and sizes."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self.files: dict[str, FileRecord] = {}

    def text(self, name: str, content: str) -> None:
        write_text(self._output / name, content)
        self._record(name)

    def copy(self, name: str, source: Path) -> None:
        with replacing(self._output / name) as temporary:
            shutil.copyfile(source, temporary)
        self._record(name)

    def graphs(self, names: Sequence[str], sources: Sequence[Path], shared: Shared | None) -> None:
        """Write graphs; see `ptqd_export.stages.finish.pieces.write_whole`."""
        paths = self._paths(names)
        with naming_full_disks(paths[0]):
            write_whole(sources, paths, shared=shared)
        self._record_all(names)

    def pieces(self, names: Sequence[str], sources: Sequence[Path], shared: Shared | None) -> list[PiecesRecord] | None:
        """Write the graphs of a precision under these names and, if embeddings can be cut off, their pieces."""
        paths, folder = self._paths(names), PurePosixPath(names[0]).parent
        with naming_full_disks(paths[0]):
            made = write_in_pieces(sources, paths, shared=shared)
        self._record_all(names)
        if made is None:
            return None
        return [
            PiecesRecord(body=f"{folder}/{one.body}", embeddings={key: f"{folder}/{piece}" for key, piece in one.embeddings.items()})
            for one in made
        ]

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self._output / name

    def _paths(self, names: Sequence[str]) -> list[Path]:
        paths = [self.path(name) for name in names]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        return paths

    def _record_all(self, names: Sequence[str]) -> None:
        """Record the graphs with everything beside them that has their names."""
        for name in names:
            for file in sorted(self.path(name).parent.iterdir()):
                if graph_of(file.name).startswith(f"{PurePosixPath(name).stem}."):
                    self._record(file.relative_to(self._output).as_posix())

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        with replacing(self._output / name) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._record(name)

    def _record(self, name: str) -> None:
        path = self._output / name
        self.files[name] = FileRecord(sha256=sha256(path), bytes=path.stat().st_size)
