"""Samples a network's activations while it runs. Memory does not grow with the number of states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calib.quantizers.outputs.input_rows import input_rows, row_count

VALUES_A_TENSOR = 2**16
"""Total number of values kept per tensor. Half as many miss enough of the tails to cost 1 dB at W8A8."""


@dataclass
class ObservedActivations:
    """Range of one observed tensor, and a sample of its values. For the output of a layer also rows of the layer's input."""

    low: float = 0.0
    high: float = 0.0
    drawn: list[Tensor] = field(default_factory=list)
    drawn_rows: list[Tensor] = field(default_factory=list)

    def add(self, tensor: Tensor, count: int, generator: torch.Generator) -> None:
        flat = tensor.detach().reshape(-1)
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        chosen = torch.randint(len(flat), (count,), generator=generator)
        self.drawn.append(flat[chosen.to(flat.device)].float().cpu())

    @property
    def values(self) -> Tensor:
        return torch.cat(self.drawn)

    @property
    def rows(self) -> Tensor:
        """float32 [count, groups, inputs]; see `calib.quantizers.outputs.input_rows`."""
        return torch.cat(self.drawn_rows)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays to store: `values` [count], `range` [2] and, for the output of a layer, `rows`; float32."""
        arrays = {"values": self.values.numpy(), "range": np.array([self.low, self.high], dtype=np.float32)}
        return arrays | ({"rows": self.rows.numpy()} if self.drawn_rows else {})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> ObservedActivations:
        """Return what `arrays` were made from."""
        low, high = arrays["range"].tolist()
        rows = [torch.from_numpy(arrays["rows"])] if "rows" in arrays else []
        return cls(low, high, [torch.from_numpy(arrays["values"])], rows)

    def thinned(self, share: int) -> ObservedActivations:
        """Return the observations with every `share`-th of the values and rows; the range stays that of all."""
        rows = [self.rows[::share]] if self.drawn_rows else []
        return ObservedActivations(self.low, self.high, [self.values[::share]], rows)

    @classmethod
    def together(cls, parts: Iterable[ObservedActivations]) -> ObservedActivations:
        """Return the observations of one tensor at all the states of the parts."""
        parts = tuple(parts)
        drawn = [values for part in parts for values in part.drawn]
        rows = [some for part in parts for some in part.drawn_rows]
        return cls(min(part.low for part in parts), max(part.high for part in parts), drawn, rows)


@contextmanager
def observe_activations(
    network: nn.Module, inputs: Iterable[str], outputs: Iterable[str], calls: int
) -> Iterator[dict[str, ObservedActivations]]:
    """Observe the inputs of named modules, and the outputs of named layers, while the `with` block runs the network `calls` times.

    Yields:
        the observations, by `<name>.input` and `<name>.output`.
    """
    seen: dict[str, ObservedActivations] = {}
    count = max(1, VALUES_A_TENSOR // calls)
    generator, row_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    handles = []
    for name in inputs:
        observed = seen[f"{name}.input"] = ObservedActivations()

        def before(_module: nn.Module, args: tuple[Tensor, ...], observed: ObservedActivations = observed) -> None:
            observed.add(args[0], count, generator)

        handles.append(network.get_submodule(name).register_forward_pre_hook(before))
    for name in outputs:
        observed = seen[f"{name}.output"] = ObservedActivations()

        def after(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor, observed: ObservedActivations = observed) -> None:
            observed.add(out, count, generator)
            observed.drawn_rows.append(input_rows(layer, args[0], -(-row_count(layer) // calls), row_generator))

        handles.append(network.get_submodule(name).register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
