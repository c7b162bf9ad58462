"""Reads the server's pages. They are static: their scripts read the OpenAPI document of the server that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from engines.apps.serve.pages.answer import Answer

HTML = "text/html; charset=utf-8"
HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src blob:"}
"""The pages load nothing from elsewhere."""


def page_answers(openapi: bytes) -> Mapping[str, Answer]:
    """Return the answers to GET requests for the pages, by path.

    Args:
        openapi: the OpenAPI document as JSON.
    """
    files = resources.files(__package__)
    style = files.joinpath("page.css").read_text()
    form, description = (files.joinpath(name).read_text().replace("/* page.css */", style) for name in ("form.html", "description.html"))
    return {
        "/": Answer(200, form.encode(), HTML, HEADERS),
        "/docs": Answer(200, description.encode(), HTML, HEADERS),
        "/openapi.json": Answer(200, openapi),
    }
