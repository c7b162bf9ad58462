"""Read the pickle inside a checkpoint without running anything that it names.

A pickle is a program: it looks up globals by name and calls them. Checkpoints of Lightning name its callbacks beside the tensors. Here a
lookup imports nothing. Three kinds of names are told apart:

1. those that tensors are made of (`_known`) give descriptions of the tensors, not the tensors;
2. any other name gives a class of its own that stands in for it. It can be an entry, be instantiated and be filled, all without effect;
3. a **call** of such a name is what an attack needs, and is refused, but for a few constructors of plain values that training states hold
   (`_HARMLESS`), which give another stand-in.
"""

from __future__ import annotations

import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

import torch

from engines.errors import PtqdError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_HARMLESS = frozenset(
    {
        "_codecs.encode", "builtins.complex", "builtins.frozenset", "builtins.set", "collections.defaultdict", "collections.deque",
        "copyreg._reconstructor", "datetime.datetime", "datetime.timedelta", "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.dtype",
        "pathlib.PosixPath", "pathlib.WindowsPath", "torch.device",
    }
)  # fmt: skip
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Storage(NamedTuple):
    """Where values lie: the record's name in the archive, their type and number."""

    key: str
    dtype: torch.dtype
    elements: int


class StoredTensor(NamedTuple):
    """A tensor that was not read: its storage, and how it lies there (all counted in elements)."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Uncalled(type):
    """Type of the stand-ins' classes: calling one is the end."""

    def __call__(cls, *_: object, **__: object) -> NoReturn:
        raise PtqdError(
            "The checkpoint is refused: reading it as Python does would run code.",
            found=f"a call of {cls.__name__}",
            expected="tensors and plain values",
            mend="do not use this file; a checkpoint from its authors, or its state_dict as .safetensors, holds nothing to run",
        )


class StandIn(metaclass=_Uncalled):
    """An object of an unknown class, without its code and without its content."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def add(self, item: object) -> None: ...


def read_pickle(file: IO[bytes]) -> Any:
    """The object in the pickle, with `StoredTensor` for tensors and `StandIn` for what is unknown.

    Raises:
        PtqdError: it is no pickle, it would call something, or a tensor's description is not one.
    """
    try:
        return _InertUnpickler(file, encoding="utf-8").load()
    except PtqdError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise PtqdError("The checkpoint's pickle cannot be read.", found=f"{type(error).__name__}: {error}") from error


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        known = _known(full)
        if known is not None:
            return known
        return _plain_value if full in _HARMLESS else _Uncalled(full, (StandIn,), {})

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as elements):
                return Storage(key, dtype, elements)
        raise PtqdError("The checkpoint refers to something that is no tensor.", found=reprlib.repr(pid), expected="a storage of tensors")


def _known(full: str) -> Any:
    """What tensors and the dictionaries around them are made of, as descriptions."""
    module, _, name = full.rpartition(".")
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return _TENSOR_PARTS.get(full)


def _plain_value(*_: object) -> StandIn:
    """What a constructor of plain values would make is of no use here."""
    return StandIn.__new__(StandIn)


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise PtqdError("A tensor of the checkpoint is described wrongly.", found=reprlib.repr((offset, shape, stride)))
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


_TENSOR_PARTS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
}
