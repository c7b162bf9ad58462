"""Describes the server in an OpenAPI 3.1 document, from the models that read its requests and the limits that it refuses by."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engines.apps.serve.image_request import ImageRequest
from engines.apps.serve.request_limits import Limits
from engines.bundle.manifest import ModelRecord

Json = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        name: name of the bundle.
        schedule: the chain in a few words, such as `default: ddim, 20 steps`.
        model: record of the bundle's model.
        limits: request limits.
    """

    name: str
    schedule: str
    model: ModelRecord
    limits: Limits


def openapi(served: Served) -> Json:
    """Return the document, ready for `json.dumps`."""
    limits = served.limits
    refusals = {
        "400": f"The request does not fit the model, or asks for more than {limits.number} pictures.",
        "413": f"The body is longer than {limits.body} bytes.",
        "429": f"The client sends more than {limits.rate:g} requests per second. Retry-After gives the seconds to wait.",
        "500": "Sampling failed.",
        "503": f"{limits.waiting} pictures are waiting. Retry-After gives the seconds to wait.",
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    pictures = {
        "description": "One picture as PNG; several as a zip archive of PNG files that are named by sample number.",
        "content": {"image/png": binary, "application/zip": binary},
    }
    post = {
        "summary": "Sample pictures",
        "description": "A sample depends only on the seed, its number, and its class or prompt: the same request gives the same picture.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(served), "example": _example(served)}}},
        "responses": {"200": pictures, **{status: _refusal(text) for status, text in refusals.items()}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": served.name,
            "version": version("ptqd-export"),
            "summary": f"{served.model.family}; {served.schedule}",
            "description": "Pictures sampled from a quantized diffusion model by ptqd-run serve.",
        },
        "paths": {
            "/images": {"post": post},
            "/health": {"get": _get("Check the server", "Number of running replicas and waiting pictures.", "application/json", 503)},
            "/metrics": {"get": _get("Read the metrics", "Counters and histograms in Prometheus' text format.", "text/plain")},
            "/openapi.json": {"get": _get("Get this document", "OpenAPI 3.1.", "application/json")},
            "/docs": {"get": _get("Read this description", "A page for people.", "text/html")},
            "/": {"get": _get("Try it", "A form that samples pictures.", "text/html")},
        },
    }


def request_schema(served: Served) -> Json:
    """Return the JSON Schema of the body: exactly the keys that this model takes, in the ranges that this server accepts."""
    schema = ImageRequest.model_json_schema()
    keys, model = schema["properties"], served.model
    keys["num"]["maximum"] = served.limits.number
    keys["number"] = {**keys["num"], "deprecated": True, "description": "The earlier name of num."}
    schema["not"] = {"required": ["num", "number"]}
    if model.text is None:
        del keys["prompt"]
    else:
        keys["prompt"] = {**keys["prompt"]["anyOf"][0], "description": keys["prompt"]["description"]}
        schema["required"].append("prompt")
    if model.conditioning is None or model.text is not None:
        del keys["class"]
    else:
        keys["class"]["anyOf"][0]["maximum"] = model.conditioning.rows - 1
    return schema


def _example(served: Served) -> Json:
    example: Json = {"seed": 5, "num": 1}
    if served.model.text is not None:
        return example | {"prompt": "a lighthouse at dusk"}
    return example if served.model.conditioning is None else example | {"class": 0}


def _refusal(text: str) -> Json:
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, text: str, media_type: str, refusal: int | None = None) -> Json:
    responses: Json = {"200": {"description": text, "content": {media_type: {}}}}
    if refusal is not None:
        responses[str(refusal)] = {"description": "No replica is running.", "content": {media_type: {}}}
    return {"summary": summary, "responses": responses}
