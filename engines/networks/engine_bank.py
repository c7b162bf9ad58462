"""The engine bank: one denoiser a precision, each opened when the schedule first asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from engines.backends.base import Backend, Engine
from engines.backends.choice import on_onnxruntime
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle, ConditioningRecord, PrecisionRecord
from engines.bundle.bundle_files import COPY_AGAIN
from engines.errors import BundleError, UsageError
from engines.networks.conditioning import Conditioning, class_labels, load_table
from engines.networks.embeddings import Embedding
from engines.networks.engine_denoiser import STATE, TIMESTEP, EngineDenoiser


class EngineBank:
    """The engines of a bundle by precision.

    Args:
        bundle: where the graphs come from.
        guidance: scale of classifier-free guidance; 1 evaluates the conditional branch alone.
        batch: samples of the chains to come.
        threads: see `OnnxRuntimeEngine`.
        backend: what opens the graphs; None is ONNX Runtime, as the statistics were measured on it, whatever target they are for.
        conditioning: rows in place of the bundle's own, or None.
        timesteps: by precision, those of the chains to come, where they are known.
        whole: open whole graphs, also of networks that the bundle holds in pieces; what they give is the same.

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
        timesteps: Mapping[str, Sequence[float]] = MappingProxyType({}),
        whole: bool = False,
    ) -> None:
        self._bundle = bundle
        self._batch = batch
        self._backend = backend or on_onnxruntime(bundle, threads)
        self._timesteps = timesteps
        # In pieces OpenVINO's networks give other outputs (W8A8 of the digits model: up to 0.5 %): what was measured holds for the whole.
        self._whole = whole or not isinstance(self._backend, OnnxRuntimeBackend)
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
        record = self._bundle.precision(precision)
        rows = self._batch * (2 if self.guided else 1)
        pieces = None if self._whole else record.pieces
        engine = self._engine(record.graph if pieces is None else pieces.body, record, rows)
        made = {} if pieces is None else {name: self._engine(graph, record, 1) for name, graph in pieces.embeddings.items()}
        self._check_fits(engine, made)
        timesteps = self._timesteps.get(precision, ())
        embeddings = {name: Embedding(one, self.conditioning, timesteps) for name, one in made.items()}
        return EngineDenoiser(engine, self.conditioning, self.guided, embeddings)

    def _engine(self, graph: str, record: PrecisionRecord, rows: int) -> Engine:
        engine = self._backend.open(self._bundle.graph(graph, record.graph), rows)
        self._bundle.graph(graph, record.graph)  # hashed again if it was exchanged while the runtime opened it
        return engine

    def _check_fits(self, engine: Engine, made: Mapping[str, Engine]) -> None:
        """What the manifest says of the network is true of its graphs; before anything is allocated for it.

        Args:
            engine: that takes the state.
            made: by name, the engines whose outputs are inputs of it.
        """
        model = self._bundle.manifest.model
        tables = {} if self.conditioning is None else self.conditioning.tables
        conditions = {TIMESTEP: (), **{name: table.shape[1:] for name, table in tables.items()}}
        wanted = {STATE: model.sample_shape, **conditions, **{name: one.output.shape for name, one in made.items()}}
        specs = [*engine.inputs, *(spec for one in made.values() for spec in one.inputs)]
        found = {spec.name: spec.shape for spec in specs}
        fits = found.keys() == wanted.keys() and all(_agree(spec.shape, wanted[spec.name]) for spec in specs)
        known = all(isinstance(side, int) for one in made.values() for side in one.output.shape)
        alone = all(spec.name in conditions for one in made.values() for spec in one.inputs)
        if not (fits and known and alone and _agree(engine.output.shape, model.sample_shape)):
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
