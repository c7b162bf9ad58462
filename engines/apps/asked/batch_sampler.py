"""Samples any batch of a request on any machine. The result depends only on the request and the batch's sample numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from engines.apps.asked.control_images import AskedControl
from engines.apps.asked.edit import Edit
from engines.apps.pictures.rendering import Format, PixelRenderer, PngRenderer, RawRenderer, Rendered, Renderer
from engines.arrays import Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice
from engines.networks.conditioning import Conditioning
from engines.networks.engine_bank import EngineBank, load_conditioning
from engines.networks.kept_engines import KeptEngines

Batch: TypeAlias = tuple[Int64, Int64]
"""Sample numbers [B] and their conditioning rows [B]."""


@dataclass(frozen=True)
class BatchSampler:
    """Opened engines, and the renderer that decides what is kept of their samples.

    Attributes:
        chain: chain on opened engines.
        noise: noise of the samples.
        renderer: returns the renderer; the decoder opens when it is first called.
    """

    chain: Chain
    noise: NoiseSource
    renderer: Callable[[], Renderer]

    def __call__(self, batch: Batch, on_step: Callable[[], None] = lambda: None, *, last: bool = False) -> Rendered:
        """Sample a batch and render it.

        Args:
            batch: numbers and rows of the samples.
            on_step: called after every step.
            last: whether no other batch follows: the networks are freed before the decoder runs. A further call would open them again.
        """
        samples, rows = batch
        states = self.chain.sample(self.noise, samples, rows, on_step)
        if last and isinstance(self.chain.denoisers, EngineBank):
            self.chain.denoisers.close()
        return self.renderer()(samples, states)


@dataclass(frozen=True)
class SampleWork:
    """How to open a `BatchSampler`. It can be sent to another machine.

    Attributes:
        choice: how to sample.
        batch: number of samples in a full batch.
        seed: seed of the noise.
        format: what is kept of the samples.
        conditioning: conditioning rows that replace the bundle's own, or None.
        edit: images that the samples start from; None starts from noise.
        first: number of the sample that takes the first image.
        control: what gives the residuals of a control network, or None.
    """

    choice: ChainChoice
    batch: int
    seed: int
    format: Format
    conditioning: Conditioning | None = None
    edit: Edit | None = None
    first: int = 0
    control: AskedControl | None = None

    def open(self, bundle: Bundle, threads: int | None = None, kept: KeptEngines | None = None) -> BatchSampler:
        """Open the engines.

        Args:
            bundle: bundle with the engines.
            threads: number of CPU threads; None takes every core that the process may use.
            kept: engines of the bundle to use, with their own number of threads; None opens engines for this work alone.

        Raises:
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged, or the runtime refuses a graph.
        """
        kept = kept or KeptEngines(bundle, self.choice.runtime, threads)
        if self.format != "states":
            kept.check_decoder()  # it opens behind the first chain
        noise = NoiseSource(self.seed, bundle.manifest.model.sample_shape)
        return BatchSampler(self.chain(bundle, kept), noise, partial(self._renderer, bundle, kept))

    def chain(self, bundle: Bundle, kept: KeptEngines) -> Chain:
        """Return the chain on engines of the bundle. Raises what `open` raises."""
        control = None if self.control is None else self.control.given(bundle.manifest.model)
        chain = self.choice.open(bundle, self.batch, self._conditioning(bundle, kept), kept, control)
        if self.edit is None or self.choice.strength is None:
            return chain
        return replace(chain, origin=self.edit.origin(bundle, chain, kept, first=self.first, strength=self.choice.strength))

    def _conditioning(self, bundle: Bundle, kept: KeptEngines) -> Conditioning | None:
        """Return the conditioning rows that replace the bundle's own, with the masked images where the network takes them."""
        if self.edit is None or not bundle.manifest.model.repaints:
            return self.conditioning
        table = self.conditioning or load_conditioning(bundle)
        assert table is not None, "an inpainting network takes conditions"
        return table.with_image(self.edit.painted(bundle, kept))

    def _renderer(self, bundle: Bundle, kept: KeptEngines) -> Renderer:
        match self.format:
            case "states":
                return RawRenderer(None)
            case "npz":
                return RawRenderer(None if bundle.manifest.model.decoder is None else kept.decoder)
            case "png":
                return PngRenderer(kept.decoder)
            case "pixels":
                return PixelRenderer(kept.decoder)


@dataclass(frozen=True)
class SampleOnCopy:
    """The work on a worker's copy of the bundle; see `engines.cluster.pool.Work`."""

    copy: FolderCopy
    work: SampleWork

    def open(self, threads: int) -> BatchSampler:
        return self.work.open(Bundle.open(self.copy.local(), self.work.choice.size), threads)
