"""Base classes of all backends. An engine has named inputs, which are checked here, one output and, at a cut, the features to keep."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.errors import PtqdError

KEPT = "kept"
"""Second output of a network that returns its deep features, and input of one that takes them; see `engines.chain.features`."""


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor; `shape` omits the batch axis, which comes first and can have any size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Engine(abc.ABC):
    """A network ready to run. Backends implement `_run`, whose feeds are already checked. It returns the output and, if the network returns
    features to keep, these.

    Attributes:
        kept: features that the network returns besides its output; None if it returns none.
    """

    def __init__(self, label: str, inputs: tuple[TensorSpec, ...], output: TensorSpec, kept: TensorSpec | None = None) -> None:
        self.label = label
        self.inputs = inputs
        self.output = output
        self.kept = kept

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        """Run a batch and return the output as a new array. The caller, who knows the step, checks that the output is finite.

        Args:
            feeds: an array [batch, *shape] of the input's dtype for every input.

        Raises:
            PtqdError: an input is missing, unknown, or has the wrong dtype or shape, or the output does not have `batch` rows.
        """
        self._check(feeds)
        return self._checked(feeds, self._run(feeds)[0])

    def run_keeping(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Float32, Float32]:
        """Run a batch and return the output and the features `kept`, as new arrays; see `run`."""
        if self.kept is None:
            raise PtqdError(
                f"{self.label} returns no features to keep.", found="a network with one output", expected=f"a second output, {KEPT}"
            )
        self._check(feeds)
        out, kept = self._run(feeds)
        return self._checked(feeds, out), self._checked(feeds, kept)

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]: ...

    def _checked(self, feeds: Mapping[str, NDArray[Any]], out: Float32) -> Float32:
        batch = len(next(iter(feeds.values())))
        if out.shape[:1] != (batch,):
            raise PtqdError(f"The output of {self.label} has the wrong shape.", found=list(out.shape), expected=f"{batch} rows")
        return out

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


def output_and_kept(outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], label: str) -> tuple[TensorSpec, TensorSpec | None]:
    """Return the output of a graph and the features that it returns besides, or None.

    Raises:
        PtqdError: the graph has other outputs, or no inputs.
    """
    if not inputs or [spec.name for spec in outputs[1:]] not in ([], [KEPT]) or not outputs:
        raise PtqdError(
            f"{label} is not a network.",
            found=f"{len(inputs)} inputs, {len(outputs)} outputs",
            expected=f"inputs and one output, or a second one called {KEPT}",
        )
    return outputs[0], outputs[1] if len(outputs) > 1 else None


class Backend(Protocol):
    """Opens the graphs of a bundle on one runtime."""

    def open(self, graph: Path, rows: int) -> Engine:
        """Open the engine of a graph, ready for calls with `rows` rows.

        Raises:
            MissingBackendError: the runtime or its device is missing.
            PtqdError: the runtime refuses the graph.
        """


@runtime_checkable
class ReweightingBackend(Backend, Protocol):
    """A backend that can give the constants of a graph other values."""

    def open_with(self, graph: Path, rows: int, constants: Mapping[str, NDArray[Any]]) -> Engine:
        """Open the engine of a graph with other constants. The bundle's own graph is not changed.

        Args:
            graph: path of the graph.
            rows: rows of a call.
            constants: values by name, of the type and shape of the graph's own; packed integers as bytes.

        Raises:
            MissingBackendError: the runtime or its device is missing.
            PtqdError: the runtime refuses the graph.
        """
