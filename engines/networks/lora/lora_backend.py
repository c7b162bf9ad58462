"""Open the graphs of a precision with LoRAs in their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.backends.base import Backend, Engine, ReweightingBackend
from engines.errors import UsageError
from engines.networks.lora.changed_weights import ChangedWeights


@dataclass(frozen=True)
class LoraBackend:
    """An `engines.backends.base.Backend` for the graphs of one precision.

    Attributes:
        backend: what opens the graphs.
        changed: weights with LoRAs in them.
        precision: name of the precision.
    """

    backend: ReweightingBackend
    changed: ChangedWeights
    precision: str

    def open(self, graph: Path, rows: int) -> Engine:
        constants = self.changed.constants(self.precision, graph)
        return self.backend.open_with(graph, rows, constants) if constants else self.backend.open(graph, rows)


def with_loras(backend: Backend, changed: ChangedWeights | None, precision: str) -> Backend:
    """Return the backend that opens the graphs of a precision; the backend itself if there are no LoRAs.

    Raises:
        UsageError: engines of the backend keep the weights that they were opened with.
    """
    if changed is None:
        return backend
    if isinstance(backend, ReweightingBackend):
        return LoraBackend(backend, changed, precision)
    raise UsageError(
        "The runtime cannot take a LoRA.",
        found=", ".join(str(use.path) for use in changed.changes.uses),
        expected="ONNX Runtime, OpenVINO or TensorRT",
        mend="build a bundle with model.lora in the plan",
    )
