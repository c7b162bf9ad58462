"""The conditioning table: every sample is conditioned on one row, either a class label or a prepared embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.bundle.manifest import IMAGE, ConditioningRecord, InputRecord
from engines.chain.finite import is_finite
from engines.errors import UsageError
from engines.untrusted.npz import read_arrays

NULL_PREFIX = "null."

NULL_ROW = -1
"""Row index that stands for the "unconditional" value."""


@dataclass(frozen=True)
class Conditioning:
    """Conditioning inputs of a network.

    Attributes:
        tables: values [rows, ...] of each conditioning input of the network.
        null: value [...] of each input that means "unconditional"; None if the model has none. An image may lack one: then both branches of
            guidance take the sample's own.
        own_rows: row [rows] of the bundle's own table that each row is, with its control image; None for rows of another table.
    """

    tables: Mapping[str, NDArray[Any]]
    null: Mapping[str, NDArray[Any]] | None
    own_rows: Int64 | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        return len(next(iter(self.tables.values())))

    def feeds(self, rows: Int64, *, guided: bool) -> dict[str, NDArray[Any]]:
        """Return the network's conditioning inputs for a batch; under guidance the conditional half, then the unconditional half."""
        found = self.values(branch_rows(rows, guided=guided))
        if guided and self.null is not None:
            found |= {name: np.concatenate([table[rows]] * 2) for name, table in self.tables.items() if name not in self.null}
        return found

    def at(self, rows: Int64) -> Conditioning:
        """Return a table whose row n is row `rows[n]` of this one."""
        own = None if self.own_rows is None else self.own_rows[rows]
        return Conditioning({name: table[rows] for name, table in self.tables.items()}, self.null, own)

    def with_image(self, images: Float32) -> Conditioning:
        """Return the table with images [rows or 1, C, H, W], shared by both branches of guidance, in place of its own."""
        null = None if self.null is None else {name: value for name, value in self.null.items() if name != IMAGE}
        return replace(self, tables={**self.tables, IMAGE: np.broadcast_to(images, (self.rows, *images.shape[1:]))}, null=null)

    def of_bundle(self) -> Conditioning:
        """Return the table as a bundle's own."""
        return replace(self, own_rows=np.arange(self.rows, dtype=np.int64))

    def values(self, rows: Int64) -> dict[str, NDArray[Any]]:
        """Return the values [N, ...] of each input at `rows` [N]. `NULL_ROW` requires a model with "unconditional" values."""
        assert self.null is not None or NULL_ROW not in rows
        found = {name: table[rows] for name, table in self.tables.items()}
        for name, null in (self.null or {}).items():
            found[name][rows == NULL_ROW] = null
        return found

    def record(self, file: str | None, null_class: int | None) -> ConditioningRecord:
        """Return the manifest's record of this table."""
        inputs = tuple(
            InputRecord(name=name, dtype=str(table.dtype), shape=table.shape[1:])  # type: ignore[arg-type]  # pydantic checks it
            for name, table in self.tables.items()
        )
        return ConditioningRecord(inputs=inputs, rows=self.rows, null_class=null_class, file=file)


def branch_rows(rows: Int64, *, guided: bool) -> Int64:
    """Return the rows of a network call; under guidance those of the conditional half, then those of the unconditional half."""
    return np.concatenate([rows, np.full_like(rows, NULL_ROW)]) if guided else rows


def class_labels(count: int, null_class: int | None, name: str = "class_labels") -> Conditioning:
    """Return the conditioning of a class-conditional model: row n is class n."""
    null = None if null_class is None else {name: np.asarray(null_class, dtype=np.int64)}
    return Conditioning({name: np.arange(count, dtype=np.int64)}, null)


def load_table(path: Path, content: bytes | None = None) -> Conditioning:
    """Read prepared embeddings: an .npz with one array [rows, ...] per input and, for guidance, `null.<input>` [...].

    Args:
        path: path of the file.
        content: content of the file if it was already read, or None.

    Raises:
        UsageError: the file cannot be read, contains no table or values that are not finite, or its tables have different numbers of rows.
    """
    try:
        arrays = {name: _plain(value) for name, value in read_arrays(path if content is None else content).items()}
    except (OSError, ValueError) as error:
        raise UsageError("The conditioning file cannot be read.", found=f"{path}: {error}", expected="an .npz of plain arrays") from error
    tables = {name: value for name, value in arrays.items() if not name.startswith(NULL_PREFIX)}
    null = {name.removeprefix(NULL_PREFIX): value for name, value in arrays.items() if name.startswith(NULL_PREFIX)}
    rows = {len(table) if table.ndim else 0 for table in tables.values()}
    if len(rows) != 1 or 0 in rows:
        raise UsageError(
            "The conditioning file contains no valid table.",
            found=f"{path}: " + ", ".join(f"{k} {v.shape}" for k, v in tables.items()),
            expected="one array [rows, ...] per conditioning input, all with the same number of rows",
        )
    shared = {IMAGE} - null.keys()
    if null and {k: v.shape for k, v in null.items()} != {k: v.shape[1:] for k, v in tables.items() if k not in shared}:
        raise UsageError(
            "The unconditional values do not fit the conditioning table.",
            found=", ".join(f"null.{k} {v.shape}" for k, v in null.items()),
            expected=", ".join(f"null.{k} {v.shape[1:]}" for k, v in tables.items()),
        )
    return Conditioning(tables, null or None)


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind not in "buif":
        raise ValueError(f"values of type {value.dtype}")
    plain = value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32)
    if not is_finite(plain):
        raise ValueError("the values contain NaN or infinity")
    return plain
