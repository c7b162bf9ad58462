"""Samples any batch of a request on any machine. The result depends only on the request and the batch's sample numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from engines.apps.pictures.rendering import Format, PngRenderer, RawRenderer, Rendered, Renderer
from engines.arrays import Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice
from engines.networks.conditioning import Conditioning
from engines.networks.decoder import open_decoder

Batch: TypeAlias = tuple[Int64, Int64]
"""Sample numbers [B] and their conditioning rows [B]."""


@dataclass(frozen=True)
class BatchSampler:
    """Opened engines, and the renderer that decides what is kept of their samples."""

    chain: Chain
    noise: NoiseSource
    render: Renderer

    def __call__(self, batch: Batch, on_step: Callable[[], None] = lambda: None) -> Rendered:
        """Sample a batch and return what is kept of it; `on_step` is called after every step."""
        samples, rows = batch
        return self.render(samples, self.chain.sample(self.noise, samples, rows, on_step))


@dataclass(frozen=True)
class SampleWork:
    """How to open a `BatchSampler`. It can be sent to another machine.

    Attributes:
        choice: how to sample.
        batch: number of samples in a full batch.
        seed: seed of the noise.
        format: what is kept of the samples.
        conditioning: conditioning rows that replace the bundle's own, or None.
    """

    choice: ChainChoice
    batch: int
    seed: int
    format: Format
    conditioning: Conditioning | None = None

    def open(self, bundle: Bundle, threads: int | None = None) -> BatchSampler:
        """Open the engines.

        Args:
            bundle: bundle with the engines.
            threads: number of CPU threads; None takes every core that the process may use.

        Raises:
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged, or the runtime refuses a graph.
        """
        model = bundle.manifest.model
        chain = replace(self.choice, threads=threads).open(bundle, self.batch, self.conditioning)
        decoder = open_decoder(bundle, self.choice.runtime, threads)
        raw = RawRenderer(None if model.decoder is None else decoder)
        return BatchSampler(chain, NoiseSource(self.seed, model.sample_shape), PngRenderer(decoder) if self.format == "png" else raw)


@dataclass(frozen=True)
class SampleOnCopy:
    """The work on a worker's copy of the bundle; see `engines.cluster.pool.Work`."""

    copy: FolderCopy
    work: SampleWork

    def open(self, threads: int) -> BatchSampler:
        return self.work.open(Bundle.open(self.copy.local()), threads)
