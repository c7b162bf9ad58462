"""Read the pickle inside a checkpoint without running anything that it names.

A pickle is a program: it looks up globals by name and calls them. Lightning's checkpoints name its callbacks beside the tensors. Here a
lookup imports nothing. There are three cases:

1. a name that tensors are made of (`_known`) gives a description of the tensor, not the tensor;
2. any other name gives a stand-in class. It can be stored, instantiated and filled, all without effect;
3. a **call** of such a name is what an attack needs, and is refused. The exceptions are a few constructors of plain values that training
   states contain (`_HARMLESS`); calling one gives another stand-in.
"""

from __future__ import annotations

import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

import torch

from engines.errors import PtqdError

UnpicklingError = pickle.UnpicklingError
"""What `torch.load` raises for a file that it refuses."""

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
    """Location of a tensor's values: the record's name in the archive, the dtype, and the number of elements."""

    key: str
    dtype: torch.dtype
    elements: int


class StoredTensor(NamedTuple):
    """Description of a tensor that was not read: its storage, and its layout there, counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Uncalled(type):
    """Metaclass of the stand-ins: calling one of their classes is an error."""

    def __call__(cls, *_: object, **__: object) -> NoReturn:
        raise PtqdError(
            "The checkpoint is refused: loading it with Python's pickle would run code.",
            found=f"a call of {cls.__name__}",
            expected="tensors and plain values",
            mend="do not use this file; get the checkpoint from its authors, or its state_dict as .safetensors, which contains no code",
        )


class StandIn(metaclass=_Uncalled):
    """Stands in for an object of an unknown class, without that class's code and without the object's content."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def add(self, item: object) -> None: ...


def read_pickle(file: IO[bytes]) -> Any:
    """Return the object in the pickle, with `StoredTensor` for tensors and `StandIn` for unknown objects.

    Raises:
        PtqdError: the file is not a pickle, it would call something, or the description of a tensor is invalid.
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
        raise PtqdError("The checkpoint refers to something that is not a tensor.", found=reprlib.repr(pid), expected="a tensor storage")


def _known(full: str) -> Any:
    """Return the description for a name that tensors, or the dictionaries around them, are made of; None for other names."""
    module, _, name = full.rpartition(".")
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return _TENSOR_PARTS.get(full)


def _plain_value(*_: object) -> StandIn:
    """Stand in for a constructor of plain values, whose result is not needed here."""
    return StandIn.__new__(StandIn)


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise PtqdError("The description of a tensor in the checkpoint is invalid.", found=reprlib.repr((offset, shape, stride)))
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


_TENSOR_PARTS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
}
