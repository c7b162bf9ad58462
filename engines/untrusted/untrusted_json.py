"""Read untrusted JSON. Every fault becomes one error that names the file and says what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn, TypeAlias

from engines.errors import PtqdError, UsageError
from engines.untrusted.plain_file import read_plain

SIZE_LIMIT = 64 * 2**20
"""Maximum bytes of a JSON file: several times the statistics of a thousand steps."""

JsonObject: TypeAlias = dict[str, object]


def read_json_object(path: Path, kind: type[PtqdError] = UsageError, *, infinities: bool = False) -> JsonObject:
    """Read the JSON object in a file.

    Args:
        path: a regular file of at most `SIZE_LIMIT` bytes.
        kind: class of the error to raise; it depends on who owns the file.
        infinities: accept `Infinity` and `-Infinity`, which are not JSON but which Python writes.

    Raises:
        PtqdError: an error of class `kind`: the file cannot be read, or its content is refused by `json_object`.
    """
    try:
        data = read_plain(path, SIZE_LIMIT)
    except OSError as error:
        raise kind(f"{path} cannot be read.", found=error.strerror, expected="a readable JSON file") from error
    return json_object(data, path, kind, infinities=infinities)


def json_object(data: bytes, source: Path | str, kind: type[PtqdError] = UsageError, *, infinities: bool = False) -> JsonObject:
    """Parse a JSON object.

    Args:
        data: the text.
        source: the file that it comes from, or a name with which a sentence can begin.
        kind: see `read_json_object`.
        infinities: see `read_json_object`.

    Raises:
        PtqdError: an error of class `kind`: the content is not JSON, is not an object, repeats a key, is nested too deeply, or contains a
            number that is not a finite float64 or a character that UTF-8 cannot encode.
    """
    try:
        value = json.loads(
            data, object_pairs_hook=_without_repeats, parse_constant=_infinity if infinities else _refuse, parse_float=_finite
        )
        json.dumps(value, ensure_ascii=False).encode()  # UTF-8 cannot encode half a surrogate pair
    except json.JSONDecodeError as error:
        raise kind(
            f"{source} is not JSON.",
            found=f"line {error.lineno}, column {error.colno}: {error.msg}",
            expected="a JSON object",
            mend="correct that place; JSON allows neither comments nor trailing commas",
        ) from error
    except UnicodeError as error:
        place = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else "half a surrogate pair"
        raise kind(f"{source} is not text.", found=place, expected="a JSON object in UTF-8") from error
    except RecursionError as error:
        raise kind(f"{source} is nested too deeply.", expected="a JSON object with a few levels") from error
    except _RepeatedKeyError as error:
        raise kind(f"{source} contains a key twice.", found=f'"{error}"', expected="each key once", mend="delete one of the two") from error
    except ValueError as error:
        raise kind(
            f"{source} contains NaN, infinity or a number out of range.", found=_shortened(error), expected="finite numbers"
        ) from error
    if not isinstance(value, dict):
        raise kind(f"{source} is not a JSON object.", found=_kind(value), expected="an object: { ... }")
    return value


class _RepeatedKeyError(Exception):
    """A key occurs twice: by default, the `json` module silently keeps the last of two equal keys."""


def _without_repeats(pairs: list[tuple[str, object]]) -> JsonObject:
    result: JsonObject = {}
    for key, value in pairs:
        if key in result:
            raise _RepeatedKeyError(_shortened(key))
        result[key] = value
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _infinity(constant: str) -> float:
    return _refuse(constant) if constant == "NaN" else float(constant)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(digits)
    return value


def _shortened(text: object) -> str:
    whole = str(text)
    return whole if len(whole) <= 80 else f"{whole[:77]}..."


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds[type(value)]
