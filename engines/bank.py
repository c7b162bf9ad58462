"""The engine bank: one denoiser a precision, each opened when the schedule first asks for it."""

from __future__ import annotations

from engines.backends.onnxruntime import OnnxRuntimeEngine
from engines.bundle import Bundle, ConditioningRecord
from engines.conditioning import Conditioning, class_labels, load_table
from engines.denoiser import Denoiser
from engines.errors import UsageError
from engines.network import EngineDenoiser


class EngineBank:
    """The engines of a bundle by precision.

    Args:
        bundle: where the graphs come from.
        guidance: scale of classifier-free guidance; 1 evaluates the conditional branch alone.
        threads: see `OnnxRuntimeEngine`.
    """

    def __init__(self, bundle: Bundle, guidance: float, *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._threads = threads
        self._opened: dict[str, Denoiser] = {}
        self.conditioning = load_conditioning(bundle)
        self.guided = guidance != 1.0 and self.conditioning is not None

    def __getitem__(self, precision: str) -> Denoiser:
        if precision not in self._opened:
            self._opened[precision] = self._open(precision)
        return self._opened[precision]

    def _open(self, precision: str) -> Denoiser:
        record = self._bundle.manifest.precisions.get(precision)
        if record is None:
            raise UsageError(
                "The bundle has no engine of this precision.", found=precision, expected=" or ".join(self._bundle.manifest.precisions)
            )
        engine = OnnxRuntimeEngine(self._bundle.path(record.graph), threads=self._threads)
        return EngineDenoiser(engine, self.conditioning, self.guided)


def load_conditioning(bundle: Bundle) -> Conditioning | None:
    """The bundle's conditioning table, or None for an unconditional model."""
    record: ConditioningRecord | None = bundle.manifest.model.conditioning
    if record is None:
        return None
    if record.file is not None:
        return load_table(bundle.path(record.file))
    return class_labels(record.rows, record.null_class, record.inputs[0].name)
