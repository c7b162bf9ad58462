"""Text as editors and shells write it: byte order marks, UTF-16, line ends."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from engines.untrusted.plain_text import lines_of, read_text, text_of

TEXT = "caf\u00e9, \u732b\na dog\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)  # fmt: skip
def test_encodings_are_known_by_their_mark(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(mark + TEXT.encode(encoding))
    assert read_text(path, 1000) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9", "not UTF-8 text: .* at byte 3; save the file as UTF-8"),
        (b"\xef\xbb\xbfcaf\xe9 au lait", "not UTF-8 text: .* at byte 6"),
        (b"\xff\xfea", "not UTF-16-LE text: .* at byte 2"),
        ("a cat".encode("utf-16-le"), "null character, as .* UTF-16 without a byte order mark"),
        (b"a\0b", "null character"),
    ],
)
def test_what_is_no_text_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_of(data)


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\ufeff"])
def test_only_line_ends_end_a_line(inside: str) -> None:
    assert lines_of(f"a{inside}b\nc") == [f"a{inside}b", "c"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []), ("\n", [""]), ("a", ["a"]), ("a\r\nb\r\n", ["a", "b"]), ("a\rb", ["a", "b"]), ("a\n\nb", ["a", "", "b"]),
        ("a\n\ufeffb", ["a", "b"]),
    ],
)  # fmt: skip
def test_line_ends_of_every_system_and_appended_files(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines
