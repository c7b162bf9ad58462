"""Read the tensors of a `.ckpt` or `.safetensors` file by name. They are memory-mapped, so that unused tensors are never read."""

from __future__ import annotations

import reprlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import PtqdError
from engines.untrusted.plain_file import open_plain
from ptqd_export.models.tensors.inert_pickle import StoredTensor, read_pickle

_LOCAL_HEADER = 30
"""Bytes before the name in the local header of a zip entry."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint. Optimizer states and anything else that a training run saved with it stay on disk.

    Raises:
        PtqdError: the file cannot be read, or reading it would run code.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_archive(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise PtqdError("The checkpoint cannot be read.", found=f"{path}: {error}", mend="copy it again") from error
    return tensors


def _read_archive(path: Path) -> dict[str, Tensor]:
    """Read a file that `torch.save` wrote since version 1.6: a zip file of a pickle and, uncompressed, the values of each storage."""
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as program:
                content = read_pickle(program)
            records = _Records(path, archive, pickled.removesuffix("data.pkl"))
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:  # RuntimeError: encrypted, or an unknown compression
        raise PtqdError(
            "The checkpoint cannot be read.",
            found=f"{path}: {error}",
            expected="a file written by torch.save of version 1.6 or later",
            mend="copy it again; or convert its state_dict to .safetensors",
        ) from error
    return {name: records.tensor(stored) for name, stored in _state_dict(content, path).items()}


def _state_dict(content: Any, path: Path) -> Mapping[str, StoredTensor]:
    """Return the state dict. Lightning stores it under `state_dict`, beside other data; other files hold nothing but the state dict."""
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise PtqdError("The checkpoint contains no state dict.", found=f"{path}: {type(state).__name__}", expected="tensors by name")
    strange = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, StoredTensor))]
    if strange:
        raise PtqdError("The checkpoint's state dict contains something that is not a tensor.", found=f"{path}: {reprlib.repr(strange[0])}")
    return state


class _Records:
    """The storages of an archive, mapped copy-on-write: pages are read when they are touched."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="c")
        self._entries = {info.filename.removeprefix(f"{prefix}data/"): info for info in archive.infolist()}

    def tensor(self, stored: StoredTensor) -> Tensor:
        storage = stored.storage
        values = torch.from_numpy(self._record(storage.key)).view(storage.dtype)
        if storage.elements > len(values):
            raise PtqdError("The checkpoint is damaged.", found=f"{len(values)} values in {storage.key}", expected=f"{storage.elements}")
        try:
            return values.as_strided(stored.shape, stored.stride, stored.offset)
        except RuntimeError as error:
            raise PtqdError("A tensor of the checkpoint extends beyond its storage.", found=str(error).splitlines()[0]) from error

    def _record(self, key: str) -> NDArray[np.uint8]:
        entry = self._entries.get(key)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise PtqdError("The checkpoint is damaged.", found=f"no uncompressed record {key}", mend="copy it again")
        header = self._bytes[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
        name, extra = (int.from_bytes(header[at : at + 2].tobytes(), "little") for at in (26, 28))
        first = entry.header_offset + _LOCAL_HEADER + name + extra
        found = self._bytes[first : first + entry.file_size]
        if len(found) < entry.file_size:
            raise PtqdError("The checkpoint is damaged.", found=f"record {key} is truncated", mend="copy it again")
        return found
