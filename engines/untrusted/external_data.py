"""Find the files that an ONNX graph reads its weights from, without the `onnx` package.

A graph names these files itself, and runtimes open them; only some runtimes refuse files outside the graph's folder. This module parses
the protocol buffer down to every place where ONNX can store a tensor.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from engines.untrusted.wire_format import fields

WEIGHTS = ".data"
"""Ending of the file beside a graph that holds its weights: `w8a8.onnx.data` of `w8a8.onnx`."""

_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}(?=\.)")
"""What the names of shards have more than that of one file: `w8a8-00002-of-00003.onnx.data`."""

DEPTH = 64
"""Maximum nesting of messages; the deepest real graphs nest three graphs."""

TENSOR, ENTRY, GRAPH, NODE = "TensorProto", "StringStringEntryProto", "GraphProto", "NodeProto"
NAME = 8
"""Number of a `TENSOR`'s name field."""

KEY, VALUE = 1, 2
"""Field numbers of an `ENTRY`."""

LOCATION = "location"
"""Key of the entry that names a file."""

_NAMES_A_FILE = re.compile(LOCATION.encode())
"""A message without these bytes names no file at any depth."""

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: GRAPH, 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: GRAPH, 2: GRAPH},
    GRAPH: {1: NODE, 5: TENSOR, 15: "SparseTensorProto"},
    "FunctionProto": {7: NODE, 11: "AttributeProto"},
    NODE: {5: "AttributeProto"},
    "AttributeProto": {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: "SparseTensorProto", 23: "SparseTensorProto"},
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}
"""For each message type, the fields that lead to tensors; see onnx.proto."""


def graph_files(graph: Path) -> list[Path]:
    """Return the graph and the existing files beside it that hold its weights; a piece of a network reads the whole graph's weights."""
    try:
        beside = [graph.with_name(name) for name in sorted(external_files(graph))]
    except ValueError:
        beside = []  # not a graph: the runtime refuses it and gives a reason
    return [graph, *(file for file in beside if file.exists())]


def graph_of(weights: str) -> str:
    """Return the name of the graph that a file of weights was written for: `w8a8.onnx` of `w8a8.onnx.data` and of each of its shards."""
    return _SHARD.sub("", weights).removesuffix(WEIGHTS)


def is_weights_of(file: str, graph: str) -> bool:
    """Return whether a file has the name of a graph's weights, or of a shard of them, in the graph's folder."""
    return file.endswith(WEIGHTS) and graph_of(file) == graph


def external_files(graph: Path) -> set[str]:
    """Return the external file locations of the graph's tensors, exactly as the graph spells them.

    Raises:
        ValueError: the file is not a protocol buffer.
        OSError: the file cannot be read.
    """
    return {location for _, location in _external(graph)}


def external_tensors(graph: Path) -> set[str]:
    """Return the names of the tensors whose values are stored in other files. Raises the same errors as `external_files`."""
    return {name for name, _ in _external(graph)}


def _external(graph: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and locations of all tensors that are stored in other files."""
    with graph.open("rb") as file:
        yield from _locations(mapped(file), "ModelProto", DEPTH)


def mapped(file: BinaryIO) -> memoryview:
    empty = os.fstat(file.fileno()).st_size == 0
    return memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _locations(data: memoryview, message: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the name and location of every externally stored tensor; a tensor with several locations yields each of them."""
    if depth == 0:
        raise ValueError(f"more than {DEPTH} nested messages")
    if message == TENSOR:
        yield from _locations_of_tensor(data)
        return
    for number, value, *_ in fields(data):
        inner = MESSAGES[message].get(number)
        if inner is not None and value is not None and _NAMES_A_FILE.search(value):
            yield from _locations(value, inner, depth - 1)


def _locations_of_tensor(data: memoryview) -> Iterator[tuple[str, str]]:
    name, entries = "", []
    for number, value, *_ in fields(data):
        if value is not None and number == NAME:
            name = text_of(value)
        elif value is not None and number in MESSAGES[TENSOR]:
            entries.append({key: text_of(text or memoryview(b"")) for key, text, *_ in fields(value)})
    for entry in entries:
        if entry.get(KEY) == LOCATION:
            yield name, entry.get(VALUE, "")


def text_of(data: memoryview) -> str:
    return bytes(data).decode(errors="replace")
