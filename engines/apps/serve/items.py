"""Items that are sampled for requests. Each is a single picture, so that many requests can share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engines.apps.pictures.images import to_pixels
from engines.apps.pictures.rendering import encode_png
from engines.apps.serve.mixed_noise import MixedNoise
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser, Denoisers
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice
from engines.networks.conditioning import Conditioning
from engines.networks.decoder import Decoder, open_decoder
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.prompts import TextModel, open_text


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        seed: seed of the noise.
        number: sample number.
        row: class or conditioning row; 0 for an unconditional model, or if there is a prompt.
        prompt: prompt for a text model.
    """

    seed: int
    number: int
    row: int
    prompt: str | None = None


@dataclass(frozen=True)
class ServedPicture:
    """A PNG file, the number of items in its batch, and the number of attempts until a replica delivered it."""

    png: bytes
    batch: int
    attempts: int = 1


@dataclass(frozen=True)
class ItemWork:
    """How to open an `ItemSampler` on any machine, even one that lacks the bundle.

    Attributes:
        copy: copy of the bundle.
        choice: how to sample.
        batch: number of items in a full batch.
    """

    copy: FolderCopy
    choice: ChainChoice
    batch: int

    def open(self, threads: int) -> ItemSampler:
        bundle = Bundle.open(self.copy.local(), self.choice.size)
        model = bundle.manifest.model
        chain = replace(self.choice, threads=threads).open(bundle, self.batch)
        text = None if model.text is None else open_text(bundle)
        return ItemSampler(chain, open_decoder(bundle, self.choice.runtime, threads), model.sample_shape, text)


@dataclass(frozen=True)
class _Conditioned:
    """The engines of a chain, with conditioning rows for one batch."""

    denoisers: Denoisers
    conditioning: Conditioning

    def __getitem__(self, precision: str) -> Denoiser:
        denoiser = self.denoisers[precision]
        assert isinstance(denoiser, EngineDenoiser)
        return denoiser.conditioned(self.conditioning)


@dataclass(frozen=True)
class ItemSampler:
    """Opened engines. An item's picture depends on that item alone, and equals that of `ptqd-run sample` for its seed, number and row.

    Attributes:
        chain: opened chain.
        decoder: decodes states to images.
        shape: shape of one state.
        text: encoders of a text model, whose items all have prompts; else None.
    """

    chain: Chain
    decoder: Decoder
    shape: tuple[int, ...]
    text: TextModel | None

    def __call__(self, items: Sequence[Item]) -> list[ServedPicture]:
        """Return one picture per item."""
        chain, rows = self.chain, np.array([item.row for item in items], dtype=np.int64)
        if self.text is not None:
            conditioning = self.text.condition([item.prompt or "" for item in items])
            chain, rows = replace(chain, denoisers=_Conditioned(chain.denoisers, conditioning)), np.arange(len(items))
        noise = MixedNoise(tuple(item.seed for item in items), self.shape)
        states = chain.sample(noise, np.array([item.number for item in items], dtype=np.int64), rows)
        return [ServedPicture(encode_png(pixels), len(items)) for pixels in to_pixels(self.decoder(states))]
