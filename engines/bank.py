"""The engine bank: one denoiser a precision, each opened when the schedule first asks for it."""

from __future__ import annotations

from collections.abc import Iterable

from engines.backends.base import Backend
from engines.backends.choice import on_onnxruntime
from engines.bundle import Bundle, ConditioningRecord
from engines.conditioning import Conditioning, class_labels, load_table
from engines.errors import UsageError
from engines.network import EngineDenoiser


class EngineBank:
    """The engines of a bundle by precision.

    Args:
        bundle: where the graphs come from.
        guidance: scale of classifier-free guidance; 1 evaluates the conditional branch alone.
        batch: samples of the chains to come.
        threads: see `OnnxRuntimeEngine`.
        backend: what opens the graphs; None is ONNX Runtime, as the statistics were measured on it, whatever target they are for.
        conditioning: rows in place of the bundle's own, or None.

    Raises:
        UsageError: the model cannot be guided.
    """

    def __init__(
        self,
        bundle: Bundle,
        guidance: float,
        *,
        batch: int = 1,
        threads: int | None = None,
        backend: Backend | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        self._bundle = bundle
        self._batch = batch
        self._backend = backend or on_onnxruntime(bundle, threads)
        self._opened: dict[str, EngineDenoiser] = {}
        self.conditioning = conditioning or load_conditioning(bundle)
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
        branches = 2 if self.guided else 1
        engine = self._backend.open(self._bundle.verified_graph(precision), branches * self._batch)
        return EngineDenoiser(engine, self.conditioning, self.guided)


def load_conditioning(bundle: Bundle) -> Conditioning | None:
    """The bundle's conditioning table, or None for an unconditional model."""
    record: ConditioningRecord | None = bundle.manifest.model.conditioning
    if record is None:
        return None
    if record.file is not None:
        return load_table(bundle.path(record.file))
    return class_labels(record.rows, record.null_class, record.inputs[0].name)
