"""The API's description says what the server does: same paths, same bodies accepted and refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

from engines.apps.pictures.rendering import encode_png
from engines.apps.serve.gateway import METHODS
from engines.apps.serve.image_request import Reader, Refused
from engines.apps.serve.pages.openapi import Served, openapi, request_schema
from engines.apps.serve.pages.page_files import page_answers
from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.bundle.bundle import Bundle
from tests.conftest import SIZE

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

LIMITS = Limits(body=2000, number=4, waiting=6, rate=20)
LORAS = LoraFolder(Path("loras"), {"style": "style.safetensors"})
IMAGE = base64.b64encode(encode_png(np.zeros((SIZE, SIZE), dtype=np.uint8))).decode()

BODIES: list[Any] = [
    {}, {"seed": 1}, {"seed": -1}, {"seed": 2**64 - 1}, {"seed": 2**64}, {"seed": "1"}, {"seed": 1, "num": 4}, {"seed": 1, "num": 5},
    {"seed": 1, "num": 0}, {"seed": 1, "number": 4}, {"seed": 1, "number": 5}, {"seed": 1, "num": 1, "number": 1}, {"seed": 1, "first": 7},
    {"seed": 1, "first": -1}, {"seed": 1, "class": 2}, {"seed": 1, "class": 3}, {"seed": 1, "prompt": "one"},
    {"seed": 1, "prompts": ["one"] * 4}, {"seed": 1, "prompts": ["one"] * 5}, {"seed": 1, "prompts": []}, {"seed": 1, "prompts": [""]},
    {"seed": 1, "prompt": "one", "prompts": ["one"]}, {"seed": 1, "prompt": "one", "negative_prompt": "two"},
    {"seed": 1, "prompt": "one", "class": 1},
    *({"seed": 1, "prompt": "one", "size": size} for size in ("8x8", "12x8", "8x12")),
    {"seed": 1, "size": "8x8"}, {"seed": 1, "size": "12x8"},
    *({"seed": 1, "prompt": "one", "loras": loras} for loras in (
        [], [{"name": "style"}], [{"name": "style", "scale": 10}], [{"name": "style", "scale": 11}], [{"name": "other"}], [{"scale": 1}],
        [{"name": "style"}] * 5, [{"name": "style", "path": "x"}],
    )),
    *({"seed": 1, **more, **images} for more in ({}, {"prompt": "one"}) for images in (
        {"image": IMAGE}, {"image": ""}, {"image": IMAGE, "strength": 0.5}, {"image": IMAGE, "strength": 0},
        {"image": IMAGE, "mask": IMAGE}, {"mask": IMAGE}, {"strength": 0.5}, {"control_image": IMAGE},
    )),
    {"seed": 1, "extra": 1}, [],
]  # fmt: skip


@pytest.fixture(params=["tiny", "tiny_unconditional", "prompted"])
def reader(request: pytest.FixtureRequest) -> Reader:
    bundle: TinyBundle = request.getfixturevalue(request.param)
    loras = LORAS if request.param == "prompted" else LoraFolder()
    return Reader(Bundle.open(bundle.folder), LIMITS.number, loras=loras)


@pytest.fixture
def served(reader: Reader) -> Served:
    return Served.of("digits", "default schedule: ddim, 20 steps", reader.bundle, reader.choice, LIMITS, tuple(reader.loras.entries))


def _is_served(reader: Reader, body: Any) -> bool:
    try:
        reader.items(json.dumps(body).encode())
    except Refused:
        return False
    return True


def test_schema_accepts_the_bodies_that_the_server_takes_and_no_others(reader: Reader, served: Served) -> None:
    schema = request_schema(served)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    differing = [body for body in BODIES if validator.is_valid(body) != _is_served(reader, body)]
    assert not differing
    assert {True, False} == {_is_served(reader, body) for body in BODIES}


def test_every_path_is_described_with_its_method(served: Served) -> None:
    document = openapi(served)
    answered = {**METHODS, **dict.fromkeys(page_answers(b"{}"), "GET")}
    assert {path: [*methods] for path, methods in document["paths"].items()} == {
        path: [method.lower()] for path, method in answered.items()
    }
    assert json.loads(json.dumps(document)) == document


def test_example_is_a_body_that_the_server_takes(reader: Reader, served: Served) -> None:
    content = openapi(served)["paths"]["/images"]["post"]["requestBody"]["content"]["application/json"]
    assert _is_served(reader, content["example"])


def test_pages_load_nothing_from_elsewhere() -> None:
    for path, answer in page_answers(b"{}").items():
        assert answer.status == 200
        assert b"http://" not in answer.content, path
        assert b"https://" not in answer.content, path
        assert b"page.css" not in answer.content, path
