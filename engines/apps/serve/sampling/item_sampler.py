"""Samples items on the engines of a replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engines.apps.pictures.images import to_pixels
from engines.apps.pictures.rendering import encode_png
from engines.apps.serve.sampling.items import PLAIN, BatchKey, Item, ServedPicture
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.apps.serve.sampling.mixed_noise import MixedNoise
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice
from engines.networks.kept_engines import KeptEngines
from engines.networks.prompts import TextModel, open_text


@dataclass(frozen=True)
class ItemWork:
    """How to open an `ItemSampler` on any machine, even one that lacks the bundle.

    Attributes:
        copy: copy of the bundle.
        choice: how to sample.
        batch: number of items in a full batch.
        loras: LoRAs that items may name.
        lora_copy: copy of their files; None takes the folder itself.
    """

    copy: FolderCopy
    choice: ChainChoice
    batch: int
    loras: LoraFolder = field(default_factory=LoraFolder)
    lora_copy: FolderCopy | None = None

    def bundle(self) -> Bundle:
        """Open the bundle on this machine."""
        return Bundle.open(self.copy.local(), self.choice.size)

    def open(self, threads: int) -> ItemSampler:
        loras = self.loras if self.lora_copy is None else replace(self.loras, folder=self.lora_copy.local())
        bundle = self.bundle()
        text = None if bundle.manifest.model.text is None else open_text(bundle)
        return ItemSampler(bundle, self.choice, self.batch, threads, loras, text)


class ItemSampler:
    """Opened engines. An item's picture depends on that item alone, and equals that of `ptqd-run sample` for the same request.

    The engines of the server's own size open now; those of another size, and of LoRAs, when an item first needs them. Engines of every
    size stay open, and of LoRAs those last used at a size.

    Args:
        bundle: bundle at the server's own size.
        choice: how to sample.
        batch: number of items in a full batch.
        threads: threads of a CPU runtime.
        loras: LoRAs that items may name.
        text: encoders of a text model, whose items all have prompts; else None.
    """

    def __init__(
        self, bundle: Bundle, choice: ChainChoice, batch: int, threads: int, loras: LoraFolder, text: TextModel | None = None
    ) -> None:
        self._bundle = bundle
        self._choice = choice
        self._batch = batch
        self._threads = threads
        self._loras = loras
        self._text = text
        self._sizes: dict[ImageSize | None, tuple[Bundle, KeptEngines]] = {}
        own = self._at(None)[1]
        own.decoder  # noqa: B018 (opens it)
        self._last = PLAIN, choice.open(bundle, batch, kept=own)

    def __call__(self, items: Sequence[Item]) -> list[ServedPicture]:
        """Return one picture per item; the items share everything that `BatchKey` names.

        Raises:
            UsageError: an image cannot be decoded, or a LoRA does not fit the bundle.
            PtqdError: a network failed.
        """
        key, prompts = items[0].key, tuple(item.prompt for item in items if item.prompt is not None)
        bundle, kept = self._at(key.size)
        chain = self._chain(key, prompts) if prompts else self._of_rows(key)
        rows = np.arange(len(items)) if prompts else np.array([item.row for item in items], dtype=np.int64)
        noise = MixedNoise(tuple(item.seed for item in items), bundle.manifest.model.sample_shape)
        states = chain.sample(noise, np.array([item.number for item in items], dtype=np.int64), rows)
        return [ServedPicture(encode_png(pixels), len(items)) for pixels in to_pixels(kept.decoder(states))]

    def _of_rows(self, key: BatchKey) -> Chain:
        """Return the chain for the bundle's own rows. It is kept, with what its engines know of rows, while items stay of one kind."""
        if self._last[0] != key:
            self._last = key, self._chain(key, None)
        return self._last[1]

    def _chain(self, key: BatchKey, prompts: tuple[str, ...] | None) -> Chain:
        """Return the chain of items that share what `key` says; row n is prompt n, or the bundle's own row n."""
        bundle, kept = self._at(key.size)
        asked = key.asked(self._choice, self._loras, num=len(prompts or "-"), prompts=prompts)
        work = asked.of(bundle, self._encoders).work(self._batch, "png")
        with self._loras.unnamed():
            return replace(work, batch=self._batch).chain(bundle, kept)

    def _encoders(self, bundle: Bundle) -> TextModel:
        assert self._text is not None
        text = bundle.manifest.model.text
        return self._text if text is None else replace(self._text, record=text)  # all sizes share the encoders

    def _at(self, size: ImageSize | None) -> tuple[Bundle, KeptEngines]:
        if size not in self._sizes:
            bundle = self._bundle if size is None else self._bundle.at(size)
            self._sizes[size] = bundle, KeptEngines(bundle, self._choice.runtime, self._threads)
        return self._sizes[size]
