"""Reading a JSON object that a user wrote: every way to fail is a UsageError that says where."""

from __future__ import annotations

import json
from pathlib import Path

from engines.errors import UsageError


def read_json_object(path: Path) -> dict[str, object]:
    """The object in the file. Raises UsageError where it cannot be read, is not JSON, is not an object, or repeats a key."""
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", found=error.strerror, expected="a readable JSON file") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} is not JSON",
            found=f"line {error.lineno}, column {error.colno}: {error.msg}",
            expected="a JSON object",
            mend="correct it at that place; JSON allows neither comments nor trailing commas",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text", found=f"{error.reason} at byte {error.start}", expected="a JSON object in UTF-8") from error
    except _RepeatedKeyError as error:
        raise UsageError(f"{path} gives a key twice", found=f'"{error}"', expected="each key once", mend="delete one of the two") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a JSON object", found=_kind(value), expected="an object: { ... }")
    return value


class _RepeatedKeyError(Exception):
    """JSON's readers keep the last of two equal keys and say nothing."""


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _RepeatedKeyError(key)
        result[key] = value
    return result


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds[type(value)]
