"""Items that are sampled for requests. Each is a single picture, so that many requests can share a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from engines.apps.asked.asked_samples import AskedSamples
from engines.apps.asked.control_images import AskedControl
from engines.apps.asked.edit import Edit
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.bundle.image_size import ImageSize
from engines.networks.chain_choice import ChainChoice


@dataclass(frozen=True)
class BatchKey:
    """What all items of a network call have in common. Items of several requests share a batch if these are equal.

    Attributes:
        size: height and width of the pictures in pixels; None is the server's own size.
        loras: names and scales of LoRAs.
        negative_prompt: prompt that guidance steers away from; None is the model's own choice.
        strength: share of the steps to take from the image; None is the usual one.
        image: PNG file to start from; None starts from noise.
        mask: PNG file, white where the image is repainted; None repaints everything.
        control_image: PNG file for the bundle's control network, or None.
    """

    size: ImageSize | None = None
    loras: tuple[tuple[str, float], ...] = ()
    negative_prompt: str | None = None
    strength: float | None = None
    image: bytes | None = field(default=None, repr=False)
    mask: bytes | None = field(default=None, repr=False)
    control_image: bytes | None = field(default=None, repr=False)

    def asked(
        self,
        choice: ChainChoice,
        folder: LoraFolder,
        num: int,
        seed: int = 0,
        first: int = 0,
        classes: tuple[int, ...] | Literal["all"] | None = None,
        prompts: tuple[str, ...] | None = None,
    ) -> AskedSamples:
        """Return samples as `ptqd-run sample` asks for them.

        Raises:
            UsageError: there is no such LoRA, or a mask without an image.
        """
        uses = tuple(folder.use(name, scale) for name, scale in self.loras)
        chain = replace(choice, size=self.size or choice.size, loras=uses, strength=self.strength)
        images = Edit.of(self.image, self.mask), AskedControl.of(self.control_image)
        return AskedSamples(num, seed, first, classes, prompts, self.negative_prompt, chain, *images)


PLAIN = BatchKey()


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        seed: seed of the noise.
        number: sample number.
        row: class or conditioning row; 0 for an unconditional model, or if there is a prompt.
        prompt: prompt for a text model.
        key: what the item has in common with those of its batch.
    """

    seed: int
    number: int
    row: int
    prompt: str | None = None
    key: BatchKey = PLAIN


@dataclass(frozen=True)
class ServedPicture:
    """A PNG file, the number of items in its batch, and the number of attempts until a replica delivered it."""

    png: bytes
    batch: int
    attempts: int = 1


def by_key(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items in groups that can share a network call, each in the items' order."""
    groups: dict[BatchKey, list[Item]] = {}
    for item in items:
        groups.setdefault(item.key, []).append(item)
    return [*groups.values()]
