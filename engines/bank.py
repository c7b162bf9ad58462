"""The engine bank: one denoiser a precision, each opened when the schedule first asks for it."""

from __future__ import annotations

from collections.abc import Iterable

from engines.backends.base import Backend
from engines.bundle import Bundle, ConditioningRecord
from engines.conditioning import Conditioning, class_labels, load_table
from engines.errors import UsageError
from engines.network import EngineDenoiser


class EngineBank:
    """The engines of a bundle by precision.

    Args:
        bundle: where the graphs come from.
        guidance: scale of classifier-free guidance; 1 evaluates the conditional branch alone.
        backend: what opens the graphs.
        batch: samples of the chains to come.

    Raises:
        UsageError: the model cannot be guided.
    """

    def __init__(self, bundle: Bundle, guidance: float, backend: Backend, *, batch: int = 1) -> None:
        self._bundle = bundle
        self._batch = batch
        self._backend = backend
        self._opened: dict[str, EngineDenoiser] = {}
        self.conditioning = load_conditioning(bundle)
        self.guided = guidance != 1.0
        if self.guided and (self.conditioning is None or self.conditioning.null is None):
            raise UsageError(
                "The model cannot be guided.",
                found=f"guidance {guidance:g}, and a model without a null condition",
                expected="guidance 1",
            )

    def open(self, precisions: Iterable[str]) -> None:
        """Open engines before they are needed, so that a damaged one is told before any work is done."""
        for precision in precisions:
            self[precision]

    def __getitem__(self, precision: str) -> EngineDenoiser:
        if precision not in self._opened:
            self._opened[precision] = self._open(precision)
        return self._opened[precision]

    def _open(self, precision: str) -> EngineDenoiser:
        record = self._bundle.manifest.precisions.get(precision)
        if record is None:
            raise UsageError(
                "The bundle has no engine of this precision.", found=precision, expected=" or ".join(self._bundle.manifest.precisions)
            )
        weights = f"{record.graph}.data"
        if weights in self._bundle.manifest.files:
            self._bundle.path(weights)  # the runtime reads it by itself, so that it must be verified first
        branches = 2 if self.guided else 1
        engine = self._backend.open(self._bundle.path(record.graph), branches * self._batch)
        return EngineDenoiser(engine, self.conditioning, self.guided)


def load_conditioning(bundle: Bundle) -> Conditioning | None:
    """The bundle's conditioning table, or None for an unconditional model."""
    record: ConditioningRecord | None = bundle.manifest.model.conditioning
    if record is None:
        return None
    if record.file is not None:
        return load_table(bundle.path(record.file))
    return class_labels(record.rows, record.null_class, record.inputs[0].name)
