"""Write a graph with other constants as files, for runtimes that take constants in no other way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.untrusted.external_data import graph_files
from engines.untrusted.stored_tensors import CHANGED, StoredTensors, graph_taking, outside


def write_changed(graph: Path, values: Mapping[str, NDArray[Any]], folder: Path) -> Path:
    """Write a graph that has other constants into an empty folder of the same file system; return its path.

    Weights that keep their values are not copied: their files are linked.

    Args:
        graph: path of the graph.
        values: values by name, of the type and shape of the graph's own; packed integers as uint8.
        folder: where to write.

    Raises:
        ValueError: the graph would be larger than 2 GiB without the values in other files.
        OSError: there is no room.
    """
    offsets = dict[str, int]()
    with (folder / CHANGED).open("wb") as file:
        for name in outside(StoredTensors(graph), values):
            offsets[name] = file.tell()
            file.write(np.ascontiguousarray(values[name]).data)
    for weights in graph_files(graph)[1:]:
        os.link(weights, folder / weights.name)
    path = folder / graph.name
    path.write_bytes(graph_taking(graph, values, offsets))
    return path
