"""Reading JSON that a user wrote, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UsageError
from engines.untrusted.untrusted_json import read_json_object


def _error(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_json_object(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_object_is_read_whatever_unicode_the_editor_saved(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"name": "Zahlen-größer", "inner": {"name": 1}}', encoding=encoding)
    assert read_json_object(path) == {"name": "Zahlen-größer", "inner": {"name": 1}}


def test_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    assert _error(path) == f"{path} cannot be read.\n  found:    No such file or directory\n  expected: a readable JSON file"


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert _error(tmp_path) == f"{tmp_path} cannot be read.\n  found:    Is a directory\n  expected: a readable JSON file"


def test_syntax_error_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{\n  "a": 1\n  "b": 2\n}')
    message = _error(path)
    assert message.startswith(f"{path} is not JSON.\n  found:    line 3, column 3: Expecting ',' delimiter\n  expected: a JSON object\n")
    assert "mend:     correct that place" in message


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.touch()
    assert "found:    line 1, column 1: Expecting value" in _error(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    assert _error(path) == f"{path} is not text.\n  found:    invalid start byte at byte 7\n  expected: a JSON object in UTF-8"


def test_infinity_is_taken_where_it_may_be_meant_and_not_a_number_never(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"a": -Infinity}')
    assert read_json_object(path, infinities=True) == {"a": float("-inf")}
    assert "found:    -Infinity" in _error(path)
    path.write_text('{"a": NaN}')
    with pytest.raises(UsageError, match="found:    NaN"):
        read_json_object(path, infinities=True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[1]", "a list"), ('"x"', "a string"), ("1", "a number"), ("1.5", "a number"), ("true", "true or false"), ("null", "null")],
)
def test_other_value_than_an_object(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    assert _error(path) == f"{path} is not a JSON object.\n  found:    {kind}\n  expected: an object: {{ ... }}"


def test_repeated_key_is_an_error_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"a": {"steps": 20, "steps": 50}}')
    assert (
        _error(path) == f'{path} contains a key twice.\n  found:    "steps"\n  expected: each key once\n  mend:     delete one of the two'
    )
