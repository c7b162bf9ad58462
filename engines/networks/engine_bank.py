"""The engine bank: one denoiser per precision, or precision at a cut, each opened when the schedule first needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from engines.backends.base import KEPT, Backend, Engine, TensorSpec
from engines.backends.choice import on_onnxruntime
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, release_activations
from engines.bundle.bundle import Bundle
from engines.bundle.bundle_files import COPY_AGAIN
from engines.bundle.manifest import ConditioningRecord
from engines.chain.denoiser import is_guided
from engines.chain.features import precision_and_cut
from engines.chain.norm_guidance import NormGuidance
from engines.errors import BundleError, UnknownNameError, UsageError
from engines.host.heap import release_free_pages
from engines.networks.conditioning import Conditioning, class_labels, load_table
from engines.networks.control import Control, ControlNetwork, GivenControl, OwnControl, stored_images
from engines.networks.cut_engines import CutEngines
from engines.networks.embeddings import Embedding
from engines.networks.engine_denoiser import STATE, TIMESTEP, EngineDenoiser
from engines.networks.grouped_engine import grouped
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_backend import with_loras


@dataclass(frozen=True)
class _Network:
    """The engine that takes the state, and the engines of its embeddings by input name, which all groups of steps share."""

    engine: Engine
    embeddings: Mapping[str, Engine]


class EngineBank:
    """The engines of a bundle by precision. A name such as `w4a8+skip_3` gives those of a precision at a cut, a `CutEngines`.

    Args:
        bundle: bundle that the graphs come from.
        guidance: scale of classifier-free guidance; 1 and less evaluate only the conditional branch.
        batch: samples per batch of the coming chains.
        threads: see `OnnxRuntimeEngine`.
        backend: backend that opens the graphs; None uses ONNX Runtime, set up as the statistics were measured, whatever the target.
        conditioning: conditioning table to use instead of the bundle's own, or None.
        timesteps: timesteps of the coming chains by precision, as far as they are known.
        whole: open whole graphs even if the bundle also has the network in pieces; the outputs are the same.
        changed: weights with LoRAs in them; None takes the bundle's own.

    Raises:
        UsageError: the guidance scale is above 1, but the model has no null condition.
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
        changed: ChangedWeights | None = None,
    ) -> None:
        self._bundle = bundle
        self._batch = batch
        self._backend = backend or on_onnxruntime(bundle, threads)
        self._timesteps = timesteps
        self._changed = changed
        # On OpenVINO, networks in pieces give other outputs (digits model at W8A8: up to 0.5 %), but the whole graph was measured.
        self._whole = whole or not isinstance(self._backend, OnnxRuntimeBackend)
        self._control_engines: list[Engine] = []
        self._networks: dict[str, _Network] = {}
        self._cuts: dict[str, tuple[Engine, Engine]] = {}
        self._denoisers: dict[str, EngineDenoiser] = {}
        self.conditioning = conditioning or load_conditioning(bundle)
        self._given_control: GivenControl | None = None
        self.guided, self._guidance = is_guided(guidance), guidance
        if self.guided and (self.conditioning is None or self.conditioning.null is None):
            raise UsageError(
                "The model cannot be guided.",
                found=f"guidance {guidance:g} for a model without a null condition",
                expected="guidance 1 or less",
            )

    def open(self, precisions: Iterable[str]) -> None:
        """Open engines before they are needed, so that damage is reported before any work begins, and drop what was computed for them."""
        for precision in precisions:
            self[precision]
        if self._changed is not None:
            self._changed.release()

    def close(self) -> None:
        """Free the engines of this bank and of all that share them. Networks that are used later open again."""
        for held in (self._denoisers, self._networks, self._cuts, self._control_engines):
            held.clear()
        if isinstance(self._backend, OnnxRuntimeBackend):
            release_activations()  # weights lie there too
        release_free_pages()

    def on_chain(
        self,
        timesteps: Mapping[str, Sequence[float]],
        guidance: float,
        conditioning: Conditioning | None = None,
        control: GivenControl | None = None,
    ) -> EngineBank:
        """Return a bank for chains with other timesteps, another scale (above 1 if and only if the bank's is) and, unless None, another
        conditioning table. Both banks share their engines.

        `control` gives the residuals of the chains: a control network, or images [K, C, H, W] in [0, 1] for that of the bundle. Without it,
        the bundle's own rows come with its own images (see `Conditioning.own_rows`), and those of another table without any.
        """
        assert is_guided(guidance) == self.guided
        other = copy(self)
        other._guidance = guidance
        other.conditioning = conditioning or self.conditioning
        other._given_control = control
        other._timesteps, other._denoisers = timesteps, {}
        return other

    def __getitem__(self, name: str) -> EngineDenoiser:
        if name not in self._denoisers:
            precision, cut = precision_and_cut(name)
            self._denoisers[name] = self._uncut(name) if cut is None else self._at_cut(precision, cut)
        return self._denoisers[name]

    def _uncut(self, precision: str) -> EngineDenoiser:
        network, timesteps = self._network(precision), self._timesteps.get(precision, ())
        embeddings = {name: Embedding(one, self.conditioning, timesteps) for name, one in network.embeddings.items()}
        return EngineDenoiser(network.engine, self.conditioning, self.guided, embeddings, self._combine, self._control)

    def _at_cut(self, precision: str, cut: str) -> CutEngines:
        name = f"{precision} {cut}"
        if name not in self._cuts:
            self._cuts[name] = self._open_cut(precision, cut)
        full, reusing_engine = self._cuts[name]
        reusing = EngineDenoiser(reusing_engine, self.conditioning, self.guided, combine=self._combine)
        return CutEngines(full, self.conditioning, self.guided, combine=self._combine, reusing=reusing)

    @property
    def _control(self) -> Control | None:
        """The residuals of the chains; None if the network takes none."""
        record, given = self._bundle.manifest.model.control, self._given_control
        if record is None:
            return None
        if callable(given):
            return Control(record.inputs, OwnControl(given))
        own = None if self.conditioning is None or given is not None else self.conditioning.own_rows
        if record.network is None or (given is None and own is None):
            return Control(record.inputs)
        images = stored_images(self._bundle, record.network) if given is None else given
        return Control(record.inputs, ControlNetwork(self._control_engine(record.network.file), record.inputs, images, own))

    def _control_engine(self, graph: str) -> Engine:
        """Return the engine of the control network, which all chains share."""
        if not self._control_engines:
            self._control_engines.append(self._backend.open(self._bundle.graph(graph), self._rows))
        return self._control_engines[0]

    @property
    def _combine(self) -> NormGuidance | None:
        return NormGuidance.at(self._guidance, self._bundle.manifest.model.guidance_patch)

    def _network(self, precision: str) -> _Network:
        if precision not in self._networks:
            self._networks[precision] = self._open(precision)
        return self._networks[precision]

    def _open(self, precision: str) -> _Network:
        record, rows = self._bundle.precision(precision), self._rows
        pieces = None if self._whole else record.pieces
        made = {} if pieces is None else {name: self._engine(graph, precision, 1) for name, graph in pieces.embeddings.items()}
        engines = list[tuple[float, Engine]]()
        for network in record.networks:
            body = network.graph if self._whole or network.pieces is None else network.pieces.body
            engines.append((network.below, self._engine(body, precision, rows)))
            self._check_fits(engines[-1][1], {name: one.output for name, one in made.items()}, made)
        return _Network(grouped(engines), made)

    def _open_cut(self, precision: str, cut: str) -> tuple[Engine, Engine]:
        """Return the engines of a cut, as one for all groups of steps: with features to keep, and with features to reuse."""
        record = self._bundle.precision(precision)
        if cut not in record.cuts:
            raise UnknownNameError(f"The bundle's {precision} has no such cut.", found=cut, known=record.cuts)
        full, reusing = list[tuple[float, Engine]](), list[tuple[float, Engine]]()
        for network in record.networks:
            graphs = network.cuts[cut]
            full.append((network.below, self._engine(graphs.full, precision, self._rows)))
            reusing.append((network.below, self._engine(graphs.reuse, precision, self._rows)))
            kept = full[-1][1].kept
            self._check_fits(full[-1][1], {})
            self._check_fits(reusing[-1][1], {KEPT: TensorSpec("none", np.dtype(np.float32), ()) if kept is None else kept})
        return grouped(full), grouped(reusing)

    @property
    def _rows(self) -> int:
        return self._batch * (2 if self.guided else 1)

    def _engine(self, graph: str, precision: str, rows: int) -> Engine:
        record = self._bundle.precision(precision)
        backend = with_loras(self._backend, self._changed, precision)
        engine = backend.open(self._bundle.graph(graph, record.weights_of), rows)
        self._bundle.graph(graph, record.weights_of)  # hashes the file again if it was replaced while the runtime opened it
        return engine

    def _check_fits(self, engine: Engine, given: Mapping[str, TensorSpec], made: Mapping[str, Engine] = MappingProxyType({})) -> None:
        """Check that the graphs match the manifest, before anything is allocated for the network.

        Args:
            engine: engine that takes the state.
            given: further inputs of `engine`, by name.
            made: engines that compute them, as far as engines do.
        """
        model = self._bundle.manifest.model
        tables = {} if self.conditioning is None else self.conditioning.tables
        conditions = {TIMESTEP: (), **{name: table.shape[1:] for name, table in tables.items()}}
        residuals = {} if model.control is None else {one.name: one.shape for one in model.control.inputs}
        wanted = {STATE: model.sample_shape, **conditions, **residuals, **{name: one.shape for name, one in given.items()}}
        specs = [*engine.inputs, *(spec for one in made.values() for spec in one.inputs)]
        found = {spec.name: spec.shape for spec in specs}
        fits = found.keys() == wanted.keys() and all(_agree(spec.shape, wanted[spec.name]) for spec in specs)
        known = all(isinstance(side, int) for one in given.values() for side in one.shape)
        alone = all(spec.name in conditions for one in made.values() for spec in one.inputs)
        if not (fits and known and alone and _agree(engine.output.shape, model.sample_shape)):
            raise BundleError(
                f"{engine.label} is not the network that the manifest describes.",
                found=f"{', '.join(f'{name} {list(shape)}' for name, shape in found.items())}; output {list(engine.output.shape)}",
                expected=f"{', '.join(f'{name} {list(shape)}' for name, shape in wanted.items())}; output {list(model.sample_shape)}",
                mend=COPY_AGAIN,
            )


def _agree(found: Sequence[object], wanted: Sequence[int]) -> bool:
    """Whether shapes are equal, ignoring axes whose size the graph leaves open."""
    return len(found) == len(wanted) and all(side == own or not isinstance(side, int) for side, own in zip(found, wanted, strict=True))


def load_conditioning(bundle: Bundle) -> Conditioning | None:
    """Return the bundle's conditioning table, or None for an unconditional model."""
    record: ConditioningRecord | None = bundle.manifest.model.conditioning
    if record is None:
        return None
    if record.file is None:
        if [(one.dtype, one.shape) for one in record.inputs] != [("int64", ())]:
            names = ", ".join(one.name for one in record.inputs)
            raise BundleError("The manifest names no conditioning file.", found=names, expected="a file, or class labels", mend=COPY_AGAIN)
        return class_labels(record.rows, record.null_class, record.inputs[0].name).of_bundle()
    table = load_table(bundle.folder / record.file, bundle.read(record.file))
    found = table.record(record.file, None)
    if (sorted(found.inputs, key=str), found.rows) != (sorted(record.inputs, key=str), record.rows):
        raise BundleError(
            "The conditioning file is not the one that the manifest describes.",
            found=f"{bundle.folder / record.file}: {found.rows} rows of {', '.join(f'{one.name} {one.shape}' for one in found.inputs)}",
            expected=f"{record.rows} rows of {', '.join(f'{one.name} {one.shape}' for one in record.inputs)}",
            mend=COPY_AGAIN,
        )
    return table.of_bundle()
