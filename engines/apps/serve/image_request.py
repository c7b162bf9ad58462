"""Requests of clients, checked against the model and the limits before anything is queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from engines.apps.serve.items import Item
from engines.arrays import Int64
from engines.bundle.manifest import ModelRecord
from engines.chain.noise import NoiseSource
from engines.errors import PtqdError
from engines.untrusted.untrusted_json import json_object


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


class ImageRequest(BaseModel):
    """The body of a POST request, a JSON object. The descriptions of its keys are part of the server's OpenAPI document."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: Annotated[int, Field(ge=0, lt=2**64, description="Seed of the noise.")]
    num: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("num", "number"), description="Number of pictures.")  # `number` is the earlier name
    ] = 1
    first: Annotated[int, Field(ge=0, lt=2**62, description="Number of the first sample of this seed.")] = 0
    row: Annotated[int | None, Field(alias="class", ge=0, description="Class of every picture. Default: drawn from the seed.")] = None
    prompt: Annotated[str | None, Field(min_length=1, max_length=10_000, description="Prompt of every picture.")] = None


@dataclass(frozen=True)
class Reader:
    """Reads request bodies for one model.

    Attributes:
        model: record of the bundle's model.
        most: maximum number of pictures per request.
    """

    model: ModelRecord
    most: int

    def items(self, body: bytes) -> list[Item]:
        """Return the items to sample.

        Raises:
            Refused: status 400, the request does not fit the model or the limit.
        """
        request = _request(body)
        if request.num > self.most:
            raise Refused(400, f"num: {request.num} pictures requested; at most {self.most} are allowed")
        numbers = request.first + np.arange(request.num, dtype=np.int64)
        rows = self._rows(request, numbers)
        return [Item(request.seed, int(n), row, request.prompt) for n, row in zip(numbers, rows, strict=True)]

    def _rows(self, request: ImageRequest, numbers: Int64) -> list[int]:
        conditioning, text = self.model.conditioning, self.model.text
        if (request.prompt is None) != (text is None):
            raise Refused(400, "prompt: this model takes no prompts" if text is None else "prompt: this model needs a prompt")
        if request.row is None and text is None and conditioning is not None:
            return [int(row) for row in NoiseSource(request.seed, self.model.sample_shape).row(numbers, conditioning.rows)]
        if request.row is None:
            return [0] * request.num
        if conditioning is None or text is not None:
            raise Refused(400, "class: this model takes no classes")
        if request.row >= conditioning.rows:
            raise Refused(400, f"class: {request.row} is out of range; this model has classes 0 to {conditioning.rows - 1}")
        return [request.row] * request.num


def _request(body: bytes) -> ImageRequest:
    try:
        return ImageRequest.model_validate(json_object(body, "The body"))
    except PtqdError as error:
        what, *details = (" ".join(line.split()) for line in str(error).splitlines())
        raise Refused(400, f"{what} {'; '.join(details)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
