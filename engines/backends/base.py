"""Base classes of all backends. An engine has named inputs, which are checked here, and one output."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.errors import PtqdError


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor; `shape` omits the batch axis, which comes first and can have any size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Engine(abc.ABC):
    """A network ready to run. Backends implement `_run`, whose feeds are already checked."""

    def __init__(self, label: str, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> None:
        self.label = label
        self.inputs = inputs
        self.output = output

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        """Run a batch and return the output as a new array. The caller, who knows the step, checks that the output is finite.

        Args:
            feeds: an array [batch, *shape] of the input's dtype for every input.

        Raises:
            PtqdError: an input is missing, unknown, or has the wrong dtype or shape, or the output does not have `batch` rows.
        """
        self._check(feeds)
        out = self._run(feeds)
        batch = len(next(iter(feeds.values())))
        if out.shape[:1] != (batch,):
            raise PtqdError(f"The output of {self.label} has the wrong shape.", found=list(out.shape), expected=f"{batch} rows")
        return out

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32: ...

    def _check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        if feeds.keys() != {spec.name for spec in self.inputs}:
            raise PtqdError(
                f"{self.label} was given the wrong inputs.",
                found=", ".join(feeds),
                expected=", ".join(spec.name for spec in self.inputs),
            )
        batch = len(next(iter(feeds.values())))
        for spec in self.inputs:
            value = feeds[spec.name]
            if value.dtype != spec.dtype or value.shape != (batch, *spec.shape):
                raise PtqdError(
                    f"Input {spec.name} of {self.label} has the wrong dtype or shape.",
                    found=f"{value.dtype} {value.shape}",
                    expected=f"{spec.dtype} {(batch, *spec.shape)}",
                )


class Backend(Protocol):
    """Opens the graphs of a bundle on one runtime."""

    def open(self, graph: Path, rows: int) -> Engine:
        """Open the engine of a graph, ready for calls with `rows` rows.

        Raises:
            MissingBackendError: the runtime or its device is missing.
            PtqdError: the runtime refuses the graph.
        """
