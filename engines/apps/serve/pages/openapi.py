"""Describes the server in an OpenAPI 3.1 document, from the models that read its requests and the limits that it refuses by."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engines.apps.serve.image_request import ImageRequest, encoded_length, picture_bytes, takes_images
from engines.apps.serve.request_limits import Limits
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import size_name
from engines.bundle.manifest import ModelRecord
from engines.chain.denoiser import is_guided
from engines.networks.chain_choice import ChainChoice

Json = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        name: name of the bundle.
        schedule: the chain in a few words, such as `default: ddim, 20 steps`.
        model: record of the bundle's model.
        limits: request limits.
        sizes: sizes of the pictures, the server's own first.
        picture: maximum number of characters of a picture in base64; 0 if the bundle takes no pictures to start from.
        control: the same of a control image.
        guided: whether the chain is guided.
        loras: names of the LoRAs.
    """

    name: str
    schedule: str
    model: ModelRecord
    limits: Limits
    sizes: tuple[str, ...]
    picture: int = 0
    control: int = 0
    guided: bool = False
    loras: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, schedule: str, bundle: Bundle, choice: ChainChoice, limits: Limits, loras: tuple[str, ...]) -> Served:
        """Return what a server says of a bundle at the server's own size."""
        model = bundle.manifest.model
        sizes = [size_name(one.image_size) for one in (model, *bundle.whole.models)]
        most = encoded_length(max(map(picture_bytes, bundle.at_sizes)))
        control = model.control is not None and model.control.network is not None
        guided = is_guided(choice.chosen(bundle).scale)
        picture = most if takes_images(bundle) else 0
        return cls(name, schedule, model, limits, tuple(dict.fromkeys(sizes)), picture, most if control else 0, guided, loras)


def openapi(served: Served) -> Json:
    """Return the document, ready for `json.dumps`."""
    limits = served.limits
    refusals = {
        "400": f"The request does not fit the model, or asks for more than {limits.number} pictures.",
        "413": f"The body is longer than {limits.body} bytes, or a picture is larger than one of the bundle's can be.",
        "429": f"The client sends more than {limits.rate:g} requests per second. Retry-After gives the seconds to wait.",
        "500": "Sampling failed.",
        "503": f"{limits.waiting} pictures wait, or requests hold {limits.held} bytes. Retry-After gives the seconds to wait.",
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    pictures = {
        "description": "One picture as PNG; several as a zip archive of PNG files that are named by sample number.",
        "content": {"image/png": binary, "application/zip": binary},
    }
    post = {
        "summary": "Sample pictures",
        "description": "A sample depends only on the seed, its number and what the request asks for: the same request, the same picture.",
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
    for name, key in schema["properties"].items():
        if "anyOf" in key and name != "class":  # None is a default, not a value
            schema["properties"][name] = {**key["anyOf"][0], "description": key["description"]}
    keys, model, most = schema["properties"], served.model, served.limits.number
    keys["num"]["maximum"] = keys["prompts"]["maxItems"] = most
    keys["number"] = {**keys["num"], "deprecated": True, "description": "The earlier name of num."}
    keys["size"] |= {"enum": [*served.sizes], "default": served.sizes[0]}
    for name in ("image", "mask", "control_image"):
        keys[name] |= {"contentEncoding": "base64", "contentMediaType": "image/png", "maxLength": served.picture or served.control}
    if keys.get("class") and model.conditioning is not None:
        keys["class"]["anyOf"][0]["maximum"] = model.conditioning.rows - 1
    keys["loras"]["items"] = schema.pop("$defs")["LoraAsked"]
    keys["loras"]["items"]["properties"]["name"]["enum"] = [*served.loras]
    schema["not"] = {"required": ["num", "number"]}
    schema["dependentRequired"] = {"mask": ["image"], "strength": ["image"], **({"image": ["mask"]} if model.repaints else {})}
    if model.text is not None:
        schema["oneOf"] = [{"required": ["prompt"]}, {"required": ["prompts"]}]
    for name, taken in _taken(served).items():
        if not taken:
            del keys[name]
    if model.repaints and model.text is not None:
        schema["required"].append("image")
    return schema


def _taken(served: Served) -> dict[str, bool]:
    """Whether the server takes each of the keys that depend on the bundle."""
    model = served.model
    prompts, pictures = model.text is not None, served.picture > 0
    return {
        "prompt": prompts,
        "prompts": prompts,
        "negative_prompt": prompts and served.guided,
        "class": model.conditioning is not None and not prompts,
        "loras": bool(served.loras),
        "image": pictures,
        "strength": pictures,
        "mask": pictures,
        "control_image": served.control > 0,
    }


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
