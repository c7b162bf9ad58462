"""The engine bank: one denoiser a precision, each opened when the schedule first asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.backends.base import Backend, Engine
from engines.backends.choice import on_onnxruntime
from engines.bundle import Bundle, ConditioningRecord
from engines.bundle_files import COPY_AGAIN
from engines.conditioning import Conditioning, class_labels, load_table
from engines.errors import BundleError, UsageError
from engines.network import STATE, TIMESTEP, EngineDenoiser


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
        self._bundle.verified_graph(precision)  # hashed again if it was exchanged while the runtime opened it
        self._check_fits(engine)
        return EngineDenoiser(engine, self.conditioning, self.guided)

    def _check_fits(self, engine: Engine) -> None:
        """What the manifest says of the network is true of its graph; before anything is allocated for it."""
        model = self._bundle.manifest.model
        tables = {} if self.conditioning is None else self.conditioning.tables
        wanted = {STATE: model.sample_shape, TIMESTEP: (), **{name: table.shape[1:] for name, table in tables.items()}}
        found = {spec.name: spec.shape for spec in engine.inputs}
        fits = found.keys() == wanted.keys() and all(_agree(found[name], wanted[name]) for name in wanted)
        if not (fits and _agree(engine.output.shape, model.sample_shape)):
            raise BundleError(
                f"{engine.label} is not the network that the manifest describes.",
                found=f"{', '.join(f'{name} {list(shape)}' for name, shape in found.items())}; output {list(engine.output.shape)}",
                expected=f"{', '.join(f'{name} {list(shape)}' for name, shape in wanted.items())}; output {list(model.sample_shape)}",
                mend=COPY_AGAIN,
            )


def _agree(found: Sequence[object], wanted: Sequence[int]) -> bool:
    """Whether shapes are the same, as far as a graph says its own."""
    return len(found) == len(wanted) and all(side == own or not isinstance(side, int) for side, own in zip(found, wanted, strict=True))


def load_conditioning(bundle: Bundle) -> Conditioning | None:
    """The bundle's conditioning table, or None for an unconditional model."""
    record: ConditioningRecord | None = bundle.manifest.model.conditioning
    if record is None:
        return None
    if record.file is None:
        if [(one.dtype, one.shape) for one in record.inputs] != [("int64", ())]:
            names = ", ".join(one.name for one in record.inputs)
            raise BundleError("The manifest names no file of conditions.", found=names, expected="a file, or classes", mend=COPY_AGAIN)
        return class_labels(record.rows, record.null_class, record.inputs[0].name)
    table = load_table(bundle.folder / record.file, bundle.read(record.file))
    found = table.record(record.file, None)
    if (sorted(found.inputs, key=str), found.rows) != (sorted(record.inputs, key=str), record.rows):
        raise BundleError(
            "The conditioning file is not the one that the manifest describes.",
            found=f"{bundle.folder / record.file}: {found.rows} rows of {', '.join(f'{one.name} {one.shape}' for one in found.inputs)}",
            expected=f"{record.rows} rows of {', '.join(f'{one.name} {one.shape}' for one in record.inputs)}",
            mend=COPY_AGAIN,
        )
    return table
