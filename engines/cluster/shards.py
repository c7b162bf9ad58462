"""Results of units as files: whole or absent, each by the name of its unit, so that a run that was cut off goes on where it was."""

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
    """A hidden folder beside the output, named by what was asked for; those of other requests are removed.

    Args:
        parent: the output's folder.
        asked: JSON values that, with the unit's name, determine a result.
    """

    def __init__(self, parent: Path, asked: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self._folder = parent / f"{PREFIX}{digest[:16]}"
        for other in parent.glob(f"{PREFIX}*"):
            if other != self._folder:
                shutil.rmtree(other)

    def has(self, unit: str) -> bool:
        return self._path(unit).is_file()

    def write(self, unit: str, arrays: Arrays) -> None:
        with replacing(self._path(unit)) as temporary, temporary.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # its stub takes a name for one of its own arguments

    def read(self, unit: str) -> Arrays:
        with np.load(self._path(unit), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def remove(self) -> None:
        """Once the output is whole."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, unit: str) -> Path:
        return self._folder / f"{unit}.npz"


def unit_name(first: int, last: int) -> str:
    """Of the samples from the first number to the last."""
    return f"{first:08d}-{last:08d}"
