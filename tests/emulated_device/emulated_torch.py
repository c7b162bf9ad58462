"""PyTorch's device `cuda` on host memory: tensors there have values, and mixing them with those of the CPU is an error, as on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """A tensor on the device; `held` has its values. Only `EmulatedCudaMode` computes with it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # untyped there
        del tensor_contents
        return f"OnDevice({self.held!r})"

    def numpy(self, *, force: bool = False) -> Any:
        del force
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __getitem__(self, place: Any) -> Tensor:  # PyTorch's own asks for the real device
        return OnDevice(self.held[tree_map(_held, place)])

    def __setitem__(self, place: Any, value: Any) -> None:
        self.held[tree_map(_held, place)] = _held(value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # as documented
        raise RuntimeError(f"{func} on a device that is not emulated any more")


class EmulatedCudaMode(TorchDispatchMode):
    """Runs every operation on the CPU's memory.

    Attributes:
        ran: how often each operation ran on the device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        there = any(isinstance(one, OnDevice) for one in tensors)
        wanted = kwargs.get("device")
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if there and not moves and any(not isinstance(one, OnDevice) and one.dim() > 0 for one in tensors):
            raise RuntimeError(f"Expected all tensors of {func} to be on the same device, cuda:0 and cpu")
        if wanted is not None:
            there = torch.device(wanted).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        if there:
            self.ran[str(func)] += 1
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func is torch.ops.aten.copy_.default or func._schema.name.endswith("_"):
            return args[0]
        return tree_map(_placed, found) if there else found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _placed(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) else value


@contextmanager
def emulated_cuda() -> Iterator[EmulatedCudaMode]:
    """Let PyTorch have one CUDA device in this thread while the block runs."""
    with pytest.MonkeyPatch.context() as patch, EmulatedCudaMode() as mode:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)  # a module takes the tensors that replace its own
        make = torch.tensor
        patch.setattr(torch, "tensor", lambda data, *, device="cpu", **options: make(data, **options).to(device))  # its copy sees no mode
        patch.setattr(torch, "inference_mode", torch.no_grad)  # which subclasses of tensors do not support
        yield mode
