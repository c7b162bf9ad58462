"""Read the named constants of an ONNX graph, and let it take others, without the `onnx` package."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BundleError
from engines.untrusted.external_data import KEY, LOCATION, NAME, VALUE, mapped, text_of
from engines.untrusted.wire_format import Field, bytes_field, fields, number_field

GRAPH_FIELD, INITIALIZER_FIELD = 7, 5
"""Numbers of the graph in a `ModelProto`, and of its constants in a `GraphProto`; see onnx.proto."""

DIMS, DTYPE, RAW_DATA, ENTRIES, DATA_LOCATION = 1, 2, 9, 13, 14
"""Numbers of the fields of a `TensorProto` that are used here."""

EXTERNAL = 1
"""Value of `DATA_LOCATION` for tensors that lie elsewhere."""

INT4 = 22
"""Number of the type of packed integers, two in a byte."""

DTYPES: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 6: np.dtype("<i4"), 7: np.dtype("<i8"), 10: np.dtype("<f2"),
}  # fmt: skip
"""Types that NumPy has, by ONNX's numbers."""

CHANGED = "changed"
"""Name of the file in which changed constants lie."""

MOST_INSIDE = 2**31 - 2**20
"""Most bytes of a graph with the values that it holds itself: messages end at 2 GiB."""


@dataclass(frozen=True, eq=False)
class StoredConstant:
    """A constant of a graph.

    Attributes:
        label: graph and name, for error messages.
        shape: its shape.
        dtype: ONNX's number of its type.
        raw: its bytes, if the graph holds them.
        place: file and offset of its bytes, if they lie in a file beside the graph.
    """

    label: str
    shape: tuple[int, ...]
    dtype: int
    raw: memoryview | None
    place: tuple[Path, int] | None

    @property
    def is_packed(self) -> bool:
        """Whether two values share a byte."""
        return self.dtype == INT4

    @property
    def numpy_type(self) -> np.dtype[Any]:
        """NumPy's type of the values.

        Raises:
            ValueError: there is none.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"values of ONNX's type {self.dtype}")
        return DTYPES[self.dtype]

    def values(self) -> NDArray[Any]:
        """Return the values, mapped where they lie in a file.

        Raises:
            ValueError: the type is none of NumPy's.
            BundleError: the bytes are missing.
        """
        dtype, count = self.numpy_type, math.prod(self.shape)
        if self.place is not None:
            path, offset = self.place
            try:
                return np.memmap(path, dtype, "r", offset, self.shape) if count else np.zeros(self.shape, dtype)
            except (ValueError, OverflowError, OSError) as error:
                raise _damaged(self.label, f"{count} values at byte {offset} of {path}: {error}") from error
        if self.raw is None or len(self.raw) != count * dtype.itemsize:
            raise _damaged(self.label, f"{count} values whose bytes are missing")
        return np.frombuffer(self.raw, dtype).reshape(self.shape)


class StoredTensors(Mapping[str, StoredConstant]):
    """The constants of a graph by name. Only those of the outermost graph count.

    Args:
        graph: path of the graph.

    Raises:
        BundleError: the file cannot be read, or is no graph.
    """

    def __init__(self, graph: Path) -> None:
        self._graph = graph
        try:
            with graph.open("rb") as file:
                self._data = mapped(file)
            self._found = dict(self._tensor(one.content) for one in _initializers(self._data) if one.content is not None)
        except (ValueError, OSError) as error:
            raise _damaged(str(graph), str(error)) from error

    def __getitem__(self, name: str) -> StoredConstant:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def _tensor(self, data: memoryview) -> tuple[str, StoredConstant]:
        name, shape, dtype, raw, entries = "", list[int](), 0, None, dict[str, str]()
        for field in fields(data):
            if field.number == NAME and field.content is not None:
                name = text_of(field.content)
            elif field.number == DIMS and field.value is not None:
                shape.append(field.value)
            elif field.number == DTYPE and field.value is not None:
                dtype = field.value
            elif field.number == RAW_DATA:
                raw = field.content
            elif field.number == ENTRIES and field.content is not None:
                entry = {part.number: text_of(part.content or memoryview(b"")) for part in fields(field.content)}
                entries[entry.get(KEY, "")] = entry.get(VALUE, "")
        place = (self._graph.with_name(entries[LOCATION]), int(entries.get("offset") or 0)) if LOCATION in entries else None
        return name, StoredConstant(f"{self._graph}: {name}", tuple(shape), dtype, raw, place)


def _damaged(place: str, problem: str) -> BundleError:
    return BundleError("A graph of the bundle cannot be read.", found=f"{place}: {problem}", mend="build the bundle again")


def _initializers(model: memoryview) -> Iterator[Field]:
    graphs = (field.content for field in fields(model) if field.number == GRAPH_FIELD and field.content is not None)
    return (field for graph in graphs for field in fields(graph) if field.number == INITIALIZER_FIELD)


def graph_taking(graph: Path, values: Mapping[str, NDArray[Any]], offsets: Mapping[str, int] = MappingProxyType({})) -> bytes:
    """Return the bytes of a graph that takes other constants: whoever loads it gives the values of those in `outside`.

    Packed integers are held by the graph itself, because no array has their type; all others are marked as lying elsewhere, in a file
    `CHANGED` that this function does not write.

    Args:
        graph: path of the graph.
        values: values by name, of the type and shape of the graph's own; packed ones as uint8.
        offsets: where in that file each value begins, for those who write it; 0 unless given.

    Raises:
        ValueError: the graph would be larger than 2 GiB.
    """
    with graph.open("rb") as file:
        parts = [_with_constants(field, values, offsets) for field in fields(mapped(file))]
    if (size := sum(map(len, parts))) > MOST_INSIDE:
        raise ValueError(f"a graph of {size} bytes; at most {MOST_INSIDE} can be loaded")
    return b"".join(parts)


def outside(graph: Mapping[str, StoredConstant], names: Collection[str]) -> list[str]:
    """Return the names of the constants whose values `graph_taking` leaves to whoever loads the graph."""
    return [name for name in names if not graph[name].is_packed]


def _with_constants(field: Field, values: Mapping[str, NDArray[Any]], offsets: Mapping[str, int]) -> bytes | memoryview:
    if field.number != GRAPH_FIELD or field.content is None:
        return field.raw
    return bytes_field(GRAPH_FIELD, *(_taking(inner, values, offsets) for inner in fields(field.content)))


def _taking(field: Field, values: Mapping[str, NDArray[Any]], offsets: Mapping[str, int]) -> bytes | memoryview:
    if field.number != INITIALIZER_FIELD or field.content is None:
        return field.raw
    kept = [inner for inner in fields(field.content) if inner.number in (DIMS, DTYPE, NAME)]
    name = next((text_of(inner.content) for inner in kept if inner.number == NAME and inner.content is not None), "")
    if name not in values:
        return field.raw
    value = values[name]
    if any(inner.number == DTYPE and inner.value == INT4 for inner in kept):
        given = [bytes_field(RAW_DATA, value.tobytes())]
    else:
        entries = {LOCATION: CHANGED, "offset": str(offsets.get(name, 0)), "length": str(value.nbytes)}
        texts = (bytes_field(KEY, key.encode()) + bytes_field(VALUE, text.encode()) for key, text in entries.items())
        given = [*(bytes_field(ENTRIES, text) for text in texts), number_field(DATA_LOCATION, EXTERNAL)]
    return bytes_field(INITIALIZER_FIELD, *(inner.raw for inner in kept), *given)
