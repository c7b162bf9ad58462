"""Requests of clients, checked against the bundle and the limits before anything is queued."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from engines.apps.serve.sampling.items import BatchKey, Item
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize, parse_size
from engines.errors import PtqdError, UsageError
from engines.networks.chain_choice import ChainChoice
from engines.untrusted.untrusted_json import json_object

MOST_LORAS = 4
"""Maximum number of LoRAs per request."""

MOST_SCALE = 10.0
"""Maximum scale of a LoRA, in either direction."""

SPARE_BYTES = 2**16
"""Bytes for all of a request but its pictures, and for what a PNG file holds besides pixels."""


class Refused(Exception):  # noqa: N818 (it is an answer, not an error)
    """A request that is not served.

    Attributes:
        status: HTTP status of the answer.
        retry_after: seconds to wait before retrying; None if retrying changes nothing.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


Prompt = Annotated[str, Field(min_length=1, max_length=10_000)]


def _png(text: str) -> Any:
    """Return the field of a PNG file in base64."""
    return Field(min_length=1, description=f"{text}: a PNG file in base64.")


class LoraAsked(BaseModel):
    """A LoRA of the server's folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=255, description="Name of the LoRA.")]
    scale: Annotated[float, Field(ge=-MOST_SCALE, le=MOST_SCALE, description="Weight of its change; 1 is the trained change.")] = 1.0


class ImageRequest(BaseModel):
    """The body of a POST request, a JSON object. The descriptions of its keys are part of the server's OpenAPI document."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: Annotated[int, Field(ge=0, lt=2**64, description="Seed of the noise.")]
    num: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("num", "number"), description="Number of pictures.")  # `number` is the earlier name
    ] = 1
    first: Annotated[int, Field(ge=0, lt=2**62, description="Number of the first sample of this seed.")] = 0
    row: Annotated[int | None, Field(alias="class", ge=0, description="Class of every picture. Default: drawn from the seed.")] = None
    prompt: Prompt | None = Field(default=None, description="Prompt of every picture.")
    prompts: Annotated[list[Prompt] | None, Field(min_length=1, description="Prompts that the pictures take in turn.")] = None
    negative_prompt: Annotated[str | None, Field(max_length=10_000, description="Prompt that guidance steers away from.")] = None
    size: Annotated[str | None, Field(description="Height and width of the pictures in pixels.")] = None
    loras: Annotated[list[LoraAsked], Field(max_length=MOST_LORAS, description="LoRAs to put into the weights.")] = []
    image: Annotated[str | None, _png("Picture to start from")] = None
    strength: Annotated[float | None, Field(gt=0, le=1, description="Share of the steps to take from `image`.")] = None
    mask: Annotated[str | None, _png("White where `image` is repainted")] = None
    control_image: Annotated[str | None, _png("Picture for the control network")] = None


@dataclass(frozen=True)
class Reader:
    """Reads request bodies for one bundle.

    Attributes:
        bundle: the bundle at the server's own size.
        most: maximum number of pictures per request, and of prompts.
        choice: how the server samples.
        loras: LoRAs that requests may name.
    """

    bundle: Bundle
    most: int
    choice: ChainChoice = field(default_factory=ChainChoice)
    loras: LoraFolder = field(default_factory=LoraFolder)

    def items(self, body: bytes) -> list[Item]:
        """Return the items to sample.

        Raises:
            Refused: status 400, the request does not fit the bundle or the limits; 413, a picture has too many bytes.
        """
        request = _request(body)
        if request.num > self.most:
            raise Refused(400, f"num: {request.num} pictures requested; at most {self.most} are allowed")
        with refusing():
            prompts, size = self._prompts(request), self._size(request)
            bundle = self.bundle.at(size) if size is not None else self.bundle
            key = self._key(request, size, picture_bytes(bundle))
            classes = None if request.row is None else (request.row,)
            asked = key.asked(self.choice, self.loras, request.num, request.seed, request.first, classes, prompts)
            drawn = asked.checked(bundle)
        numbers, rows = drawn.samples.tolist(), drawn.network_rows.tolist()
        if prompts is not None:
            return [Item(request.seed, n, 0, prompts[row], key) for n, row in zip(numbers, rows, strict=True)]
        return [Item(request.seed, n, row, None, key) for n, row in zip(numbers, rows, strict=True)]

    def _prompts(self, request: ImageRequest) -> tuple[str, ...] | None:
        if request.prompt is not None and request.prompts is not None:
            raise UsageError("Prompts are given twice.", found="prompt and prompts", expected="only one of the two")
        if request.prompts is not None and len(request.prompts) > self.most:
            raise Refused(400, f"prompts: {len(request.prompts)} prompts given; at most {self.most} are allowed")
        if request.prompt is None and request.prompts is None and self.bundle.manifest.model.text is not None:
            raise Refused(400, "prompt: this model needs a prompt")
        return tuple(request.prompts) if request.prompts is not None else None if request.prompt is None else (request.prompt,)

    def _size(self, request: ImageRequest) -> ImageSize | None:
        """Return the size of a request; None is the server's own, for which its engines are open."""
        size = None if request.size is None else parse_size(request.size)
        return None if size == tuple(self.bundle.manifest.model.image_size) else size

    def _key(self, request: ImageRequest, size: ImageSize | None, most: int) -> BatchKey:
        if request.loras and not self.loras.entries:
            raise UsageError("The server has no LoRAs.", found="loras", expected="no LoRAs", mend="start the server with --loras")
        image, mask, control = (
            _decoded(name, text, most)
            for name, text in (("image", request.image), ("mask", request.mask), ("control_image", request.control_image))
        )
        loras = tuple((one.name, one.scale) for one in request.loras)
        return BatchKey(size, loras, request.negative_prompt, request.strength, image, mask, control)


def picture_bytes(bundle: Bundle) -> int:
    """Return the maximum bytes of a picture in a request: more than any PNG file of 8 bits per channel takes at the bundle's size."""
    height, width = bundle.manifest.model.image_size
    return 4 * height * width + SPARE_BYTES


def body_bytes(bundle: Bundle) -> int:
    """Return the usual maximum bytes of a body: 64 KiB and, where the bundle takes pictures, room for three of its largest size."""
    model = bundle.manifest.model
    if not (takes_images(bundle) or (model.control is not None and model.control.network is not None)):
        return SPARE_BYTES
    return SPARE_BYTES + 3 * encoded_length(max(map(picture_bytes, bundle.at_sizes)))


def takes_images(bundle: Bundle) -> bool:
    """Whether samples of a bundle can start from pictures."""
    model = bundle.manifest.model
    return model.decoder is None or model.encoder is not None


def encoded_length(count: int) -> int:
    """Return the number of characters of `count` bytes in base64."""
    return -(-count // 3) * 4


@contextmanager
def refusing() -> Iterator[None]:
    """Refuse, with status 400, what a block cannot do for a client's fault."""
    try:
        yield
    except UsageError as error:
        raise refusal(error) from error


def refusal(error: PtqdError) -> Refused:
    """Return the refusal of a request, with all lines of an error in one."""
    what, *details = (" ".join(line.split()) for line in str(error).splitlines())
    return Refused(400, f"{what} {'; '.join(details)}")


def _decoded(name: str, text: str | None, most: int) -> bytes | None:
    if text is None:
        return None
    if len(text) > encoded_length(most):
        raise Refused(413, f"{name}: {len(text)} characters; at most {encoded_length(most)}, a PNG file of {most} bytes, are allowed")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name}: the text is not base64: {error}") from error


def _request(body: bytes) -> ImageRequest:
    try:
        return ImageRequest.model_validate(json_object(body, "The body"))
    except PtqdError as error:
        raise refusal(error) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
