"""The API's description says what the server does: same paths, same bodies accepted and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from engines.apps.serve.gateway import METHODS
from engines.apps.serve.image_request import Reader, Refused
from engines.apps.serve.pages.openapi import Served, openapi, request_schema
from engines.apps.serve.pages.page_files import page_answers
from engines.apps.serve.request_limits import Limits
from engines.bundle.manifest import ConditioningRecord, InputRecord, ModelRecord
from engines.samplers import NoiseSchedule

CLASSES = ConditioningRecord(inputs=(InputRecord(name="class_labels", dtype="int64", shape=()),), rows=3)
MODEL = ModelRecord(
    family="tiny", parameters=1, sample_shape=(1, 4, 4), conditioning=CLASSES, noise_schedule=NoiseSchedule(clip_sample=False)
)
SERVED = Served("digits", "default schedule: ddim, 20 steps", MODEL, Limits(body=200, number=4, waiting=6, rate=20))
UNCONDITIONAL = replace(SERVED, model=MODEL.model_copy(update={"conditioning": None}))

BODIES: list[Any] = [
    {}, {"seed": 1}, {"seed": -1}, {"seed": 2**64 - 1}, {"seed": 2**64}, {"seed": "1"}, {"seed": 1, "num": 4}, {"seed": 1, "num": 5},
    {"seed": 1, "num": 0}, {"seed": 1, "number": 4}, {"seed": 1, "number": 5}, {"seed": 1, "num": 1, "number": 1}, {"seed": 1, "first": 7},
    {"seed": 1, "first": -1}, {"seed": 1, "class": 2}, {"seed": 1, "class": 3}, {"seed": 1, "class": None}, {"seed": 1, "prompt": "a cat"},
    {"seed": 1, "extra": 1}, [],
]  # fmt: skip


def _is_served(served: Served, body: Any) -> bool:
    try:
        Reader(served.model, served.limits.number).items(json.dumps(body).encode())
    except Refused:
        return False
    return True


@pytest.mark.parametrize("served", [SERVED, UNCONDITIONAL], ids=["classes", "unconditional"])
def test_schema_accepts_the_bodies_that_the_server_takes_and_no_others(served: Served) -> None:
    schema = request_schema(served)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    accepted = [validator.is_valid(body) for body in BODIES]
    taken = [_is_served(served, {key: value for key, value in body.items() if value is not None} if body else body) for body in BODIES]
    differing = [body for body, one, other in zip(BODIES, accepted, taken, strict=True) if one != other and None not in dict(body).values()]
    assert not differing
    assert {True, False} == set(taken)


def test_every_path_is_described_with_its_method() -> None:
    document = openapi(SERVED)
    answered = {**METHODS, **dict.fromkeys(page_answers(b"{}"), "GET")}
    assert {path: [*methods] for path, methods in document["paths"].items()} == {
        path: [method.lower()] for path, method in answered.items()
    }
    assert json.loads(json.dumps(document)) == document


def test_example_is_a_body_that_the_server_takes() -> None:
    for served in (SERVED, UNCONDITIONAL):
        content = openapi(served)["paths"]["/images"]["post"]["requestBody"]["content"]["application/json"]
        assert _is_served(served, content["example"])


def test_pages_load_nothing_from_elsewhere() -> None:
    for path, answer in page_answers(b"{}").items():
        assert answer.status == 200
        assert b"http://" not in answer.content, path
        assert b"https://" not in answer.content, path
        assert b"page.css" not in answer.content, path
