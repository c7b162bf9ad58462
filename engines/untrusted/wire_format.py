"""The wire format of protocol buffers: a message is a sequence of fields, each a tag, `number << 3 | kind`, and its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
FIXED: Mapping[int, int] = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
"""Lengths of the kinds of fields that have a fixed one, in bytes."""


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: number of the field.
        content: its bytes; None for a field of numbers.
        value: its value; None for other fields than varints.
        raw: the whole field, with its tag.
    """

    number: int
    content: memoryview | None
    value: int | None
    raw: memoryview


def fields(data: memoryview) -> Iterator[Field]:
    """Yield every field of a message.

    Raises:
        ValueError: the data is no message.
    """
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        kind, value = tag & 7, None
        if kind in (VARINT, BYTES):
            value, at = _varint(data, at)
            length = value if kind == BYTES else 0
        elif kind in FIXED:
            length = FIXED[kind]
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        end = at + length
        if end > len(data):
            raise ValueError(f"a field of {length} bytes extends past the end of the file")
        yield Field(tag >> 3, data[at:end] if kind == BYTES else None, value if kind == VARINT else None, data[begin:end])
        at = end


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Decode a varint (seven bits a byte, least significant first); return its value and the offset after it."""
    if at < len(data) and data[at] < 0x80:  # most are one byte
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"an unterminated varint at byte {at}")


def number_field(number: int, value: int) -> bytes:
    """Return a field that holds a number, at least 0."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def bytes_field(number: int, *content: bytes | memoryview) -> bytes:
    """Return a field that holds bytes, in several parts."""
    return b"".join((_encoded(number << 3 | BYTES), _encoded(sum(map(len, content))), *content))


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
