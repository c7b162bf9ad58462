"""Moves weights to a mapped file: a build holds them all the time, and reads them now and then."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.host.heap import release_free_pages
from engines.host.mapped_file import mapped_file

LEAST_BYTES = 2**20
"""Tensors smaller than this stay where they are."""

ALIGNED = 64
"""Bytes at whose multiples tensors begin, as torch places them itself."""


def map_weights(module: nn.Module) -> None:
    """Move the large parameters and buffers of a module to a file; see `map_tensors`."""
    map_tensors([*module.parameters(), *module.buffers()])


def map_tensors(tensors: Iterable[Tensor]) -> None:
    """Move the large ones of these tensors, on the CPU, to a mapped temporary file. The system may drop their pages from memory when others
    need it, and reads them again. The file has no name, and ends with the last of the tensors.

    Raises:
        NoRoomError: the disk of temporary files is full.
    """
    values = [value for value in tensors if _is_large(value)]
    if not values:
        return
    ends = list(accumulate(-(-value.nbytes // ALIGNED) * ALIGNED for value in values))
    with tempfile.TemporaryDirectory(prefix="ptqd-weights-") as folder:
        stored = mapped_file(Path(folder) / "weights", np.uint8, (ends[-1],))
    for value, first in zip(values, (0, *ends), strict=False):
        # a storage of its own: whoever copies a tensor copies its whole storage
        mapped = torch.from_numpy(stored[first : first + value.nbytes]).view(value.dtype).view(value.shape)
        mapped.copy_(value.detach())
        value.data = mapped
    release_free_pages()


def share_values(module: nn.Module, other: nn.Module) -> None:
    """Let the parameters and buffers of a module share the values of another's of the same names, where they are equal."""
    known = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        found = known.get(name)
        if found is not None and found.dtype == value.dtype and torch.equal(found, value):
            value.data = found.data
    release_free_pages()


def _is_large(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.nbytes >= LEAST_BYTES and value.is_contiguous()
