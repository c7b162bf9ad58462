"""Hypothesis strategies that damage files: raw bytes, the structure of JSON, and arrays in archives."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

from hypothesis import strategies as st

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]

RAW = {"@NaN": "NaN", "@Infinity": "-Infinity", "@1e999": "1e999", "@digits": "9" * 5000, "@half": '"\\ud800"'}
"""Text that JSON writers never produce, by the placeholder string that stands for it until the text is written."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 10**9, 10**12, 2**63, -(10**400), 1e308, -1e-308, 0.5, "", "x", "fp32", "w4a8", "x" * 10_000,
    "../../../etc/passwd", "/etc/passwd", "a\x00b", "\x1b[2J", "graphs/onnxruntime/w8a8.onnx", "manifest.json", "schedules", ".", [], {},
    [1], [[]], {"": None}, [10**6, 10**6, 10**6], [0, 8, 8], [1, 8], [1.5] * 9, *RAW,
)  # fmt: skip
"""Values to put in place of others; some are taken from the tiny bundle, where they are valid in other places."""


@st.composite
def damaged(draw: Draw, data: bytes) -> bytes:
    """Flip, cut off, leave out, repeat, insert or overwrite some bytes of a file."""
    at, end = sorted((int(draw(st.integers(0, len(data)))), int(draw(st.integers(0, len(data))))))
    match draw(st.sampled_from(["flip", "flip", "cut", "leave out", "repeat", "insert", "overwrite"])):
        case "flip":
            changed = bytearray(data)
            for place in draw(st.lists(st.integers(0, max(len(data) - 1, 0)), min_size=1, max_size=8)):
                changed[place : place + 1] = bytes([changed[place] ^ draw(st.integers(1, 255))]) if data else b""
            return bytes(changed)
        case "cut":
            return data[:at]
        case "leave out":
            return data[:at] + data[end:]
        case "repeat":
            return data[:end] + data[at:]
        case "insert":
            return b"".join([data[:at], draw(st.binary(max_size=64)), data[at:]])
        case _:
            junk = draw(st.binary(min_size=1, max_size=64))
            return b"".join([data[:at], junk, data[at + len(junk) :]])


@st.composite
def damaged_json(draw: Draw, content: Any) -> str:
    """Damage one to three values of JSON: replace them by values of other types or absurd ones, or remove, duplicate, swap or nest them."""
    content = deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["put", "put", "put", "delete", "swap", "add", "nest", "scale"])):
            case "put":
                holder[key] = deepcopy(draw(st.sampled_from(VALUES)))
            case "delete":
                del holder[key]
            case "swap":
                other, place = places[draw(st.integers(0, len(places) - 1))]
                holder[key], other[place] = deepcopy(other[place]), deepcopy(holder[key])
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["schema_version", "x", "", "__class__", "@twice"]))] = deepcopy(draw(st.sampled_from(VALUES)))
            case "scale" if type(holder[key]) in (int, float):
                holder[key] *= draw(st.sampled_from([-1, 0, 1e-12, 1e6, 1e15]))
            case _:
                holder[key] = [holder[key]]
    return as_text(content)


def as_text(content: Any) -> str:
    """Write JSON, with the placeholders replaced by text that JSON writers never produce."""
    text = json.dumps(content)
    for stand_in, raw in RAW.items():
        text = text.replace(json.dumps(stand_in), raw)
    return text.replace('"@twice":', '"schema_version": 1, "schema_version":')


def _places(content: Any) -> Any:
    """Yield the container and key of every value, outer values first."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


@st.composite
def damaged_archive(draw: Draw, data: bytes) -> bytes:
    """Damage one array of an archive, and keep the checksums of the archive correct."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(entries)))
    header = 128 if draw(st.booleans()) else len(entries[name])
    entries[name] = draw(damaged(entries[name][:header])) + entries[name][header:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return buffer.getvalue()
