"""Results of units as files. Each file is named after its unit and is whole or absent, so that an interrupted run can resume."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.host.files import replacing

PREFIX = ".shards-"

Arrays = Mapping[str, NDArray[Any]]


class Shards:
    """A hidden folder of results, named by a hash of the request. Folders of other requests in the same place are removed.

    Args:
        parent: folder to keep it in, such as the output folder.
        asked: JSON values that, together with a unit's name, determine the unit's result.
    """

    def __init__(self, parent: Path, asked: Mapping[str, Any]) -> None:
        self._folder = shards_folder(parent, asked)
        remove_shards(parent, but=self._folder)

    def has(self, unit: str) -> bool:
        return self._path(unit).is_file()

    def write(self, unit: str, arrays: Arrays) -> None:
        with replacing(self._path(unit)) as temporary, temporary.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # the stub mistakes a name for one of savez's own arguments

    def read(self, unit: str) -> Arrays:
        with np.load(self._path(unit), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def remove(self) -> None:
        """Remove the folder. Call this once the output is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, unit: str) -> Path:
        return self._folder / f"{unit}.npz"


def shards_folder(parent: Path, asked: Mapping[str, Any]) -> Path:
    """Return the folder of a request's results. It exists from the first result on, until the output is complete."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return parent / f"{PREFIX}{digest[:16]}"


def remove_shards(parent: Path, but: Path | None = None) -> None:
    """Remove the folders of all requests, or of all but one."""
    for folder in parent.glob(f"{PREFIX}*"):
        if folder != but:
            shutil.rmtree(folder)


def unit_name(first: int, last: int) -> str:
    """Return the name of the unit with the samples from number `first` to `last`."""
    return f"{first:08d}-{last:08d}"
