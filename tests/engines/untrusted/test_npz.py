"""Archives of arrays: what numpy wrote is read as it was, and nothing is believed that the archive does not hold."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.untrusted import npz
from engines.untrusted.npz import array_names, read_arrays

ARRAYS: dict[str, Any] = {
    "floats": np.arange(12.0).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "none": np.empty((0, 5), np.float32),
    "one": np.float32(7),
    "text": np.array("abc"),
    "flags": np.array([True, False]),
}


def archive(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def of_bytes(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("x.npy", content)
    return path


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    for source in (path, path.read_bytes()):
        found = read_arrays(source)
        assert found.keys() == ARRAYS.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, ARRAYS[name], strict=True)
    assert array_names(path) == ARRAYS.keys()
    assert read_arrays(path, ["one", "absent"]).keys() == {"one"}


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    whole = npy(np.zeros((4, 4), np.float32))
    absurd = whole.replace(b"(4, 4), }         ", b"(4, 1000000000), }")
    assert len(absurd) == len(whole) != absurd.find(b"1000000000")
    with pytest.raises(OSError, match=r"x\.npy declares \[4, 1000000000\] float32 but has 192 bytes"):
        read_arrays(of_bytes(tmp_path / "a.npz", absurd))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_bytes(tmp_path / "a.npz", npy(np.zeros(2**20, np.uint8)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    assert read_arrays(path)["x"].size == 2**20
    monkeypatch.setattr(npz, "SIZE_LIMIT", 2**20)
    with pytest.raises(OSError, match="unpacks to 1048704 bytes, more than 1048576"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros(3))[:-9], "does not have the 24 bytes that it declares"),
        (npy(np.zeros(3)) + b"more", "does not have the 24 bytes that it declares"),
        (npy(np.array([{}], dtype=object)), "an array of Python objects"),
        (b"\x93NUMPY\x03\x00", "array header of version"),
        (b"text", "magic"),
    ],
)
def test_what_is_no_array_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message):
        read_arrays(of_bytes(tmp_path / "a.npz", content))


def test_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"text")
    for source in (tmp_path / "a.npz", b"text", tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=r"zip|regular file|No such file|directory"):
            read_arrays(source)
