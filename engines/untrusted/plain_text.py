"""Read text that a person wrote, in the encodings that editors and shells write."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

from engines.untrusted.plain_file import read_plain

MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}
"""Encodings by byte order mark. The mark of UTF-32 begins with that of UTF-16, and so comes first."""

MARK = "\ufeff"


def read_text(path: Path, limit: int) -> str:
    """Return the text of a regular file of at most `limit` bytes, without a byte order mark.

    Raises:
        OSError: the file cannot be read, or is larger than `limit`.
        ValueError: it is not text; see `text_of`.
    """
    return text_of(read_plain(path, limit))


def text_of(data: bytes) -> str:
    """Decode text: UTF-16 or UTF-32 if it begins with their byte order mark, else UTF-8.

    Raises:
        ValueError: the bytes are not text in that encoding, or contain a null character.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS.items() if data.startswith(mark)), (b"", "UTF-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = len(mark) + error.start
        raise ValueError(f"not {encoding} text: {error.reason} at byte {place}; save the file as UTF-8") from error
    if "\0" in text:
        raise ValueError("contains a null character, as binary files and UTF-16 without a byte order mark do; save the file as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    r"""Split text at line ends: `\n`, `\r\n` and `\r`. `str.splitlines` also splits at form feeds and other characters inside a line.

    A byte order mark at the begin of a line, where another file was appended, is dropped.
    """
    lines = [line.removeprefix(MARK) for line in re.split(r"\r\n|\n|\r", text)]
    return lines if lines[-1] else lines[:-1]
