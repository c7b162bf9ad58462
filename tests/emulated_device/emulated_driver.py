"""CUDA's driver and run-time compiler on the host: the kernels' own source is compiled for the host and run thread by thread."""

# ruff: noqa: N802  # the names are CUDA's own

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from engines.backends.tensorrt.device.update_kernel import SOURCE
from tests.emulated_device.emulated_cuda import EmulatedCuda
from tests.emulated_device.signatures import argument_counts

SHIM = """
struct Index { int x; };
static Index blockIdx, blockDim, threadIdx;
#define __global__
"""

LAUNCH = """
extern "C" void launch_{name}(int blocks, int threads, {parameters}) {{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {name}({names});
}}
"""


@functools.cache
def kernel_library() -> ctypes.CDLL:
    """The update's kernels, and a launcher for each, compiled for the host; products and sums are rounded separately, as on the device."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to compile the kernels with")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernels.cpp").write_text(SHIM + SOURCE + "".join(_launchers(SOURCE)))
        command = [compiler, "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "kernels.cpp", "-o", "kernels.so"]
        subprocess.run(command, cwd=folder, check=True)
        return ctypes.CDLL(f"{folder}/kernels.so")


def _launchers(source: str) -> list[str]:
    kernels = re.findall(r"__global__ void (\w+)\((.*?)\)", source, flags=re.DOTALL)
    return [
        LAUNCH.format(name=name, parameters=parameters, names=", ".join(re.findall(r"(\w+)(?:,|$)", parameters)))
        for name, parameters in kernels
    ]


class EmulatedModule:
    """Stands in for `cuda.bindings.driver` or `cuda.bindings.nvrtc`, and checks calls against the real module's signatures."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("cu", "nvrtc")):
            return getattr(self.real, name)
        counts = argument_counts(getattr(self.real, name), name)
        implementation = getattr(type(self), f"on_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert any(least <= len(arguments) <= most for least, most in counts), f"{name} takes {counts}, not {len(arguments)}"
            return self.answered(name, implementation, arguments)

        return call

    def answered(self, name: str, implementation: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        del name
        return (0, *implementation(self, *arguments))


class EmulatedDriver(EmulatedModule):
    """Launches queue in the streams of `cuda`, and fail once its device is lost."""

    def __init__(self, real: Any, cuda: EmulatedCuda) -> None:
        super().__init__(real)
        self.cuda = cuda

    def answered(self, name: str, implementation: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.cuda.called(name):
            return (self.real.CUresult.CUDA_ERROR_LAUNCH_FAILED, None)
        return super().answered(name, implementation, arguments)

    def on_cuModuleLoadData(self, image: bytes) -> tuple[int]:
        assert image == b"PTX"
        return (5,)

    def on_cuModuleUnload(self, module: int) -> tuple[()]:
        assert module == 5
        return ()

    def on_cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any]:
        assert module == 5
        return (kernel_library()[f"launch_{name.decode()}"],)

    def on_cuLaunchKernel(self, function: Any, *launch: Any) -> tuple[()]:
        blocks, one_block, one_more, threads, one_thread, one_other, shared, stream, (values, types), extra = launch
        assert (one_block, one_more, one_thread, one_other, shared, extra) == (1, 1, 1, 1, 0, 0)
        arguments = [kind(value) for kind, value in zip(types, values, strict=True)]
        addresses = [value for kind, value in zip(types, values, strict=True) if kind is ctypes.c_void_p]

        def work() -> None:
            for address in addresses:
                self.cuda.check_inside(address, 1, "device")
            function(ctypes.c_int(blocks), ctypes.c_int(threads), *arguments)

        self.cuda.enqueue(stream, work)
        return ()


class EmulatedNvrtc(EmulatedModule):
    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.options: list[bytes] = []

    def on_nvrtcVersion(self) -> tuple[int, int]:
        return (13, 0)

    def on_nvrtcCreateProgram(self, source: bytes, name: bytes, count: int, *headers: list[bytes]) -> tuple[str]:
        assert isinstance(source, bytes)
        assert isinstance(name, bytes)
        assert (count, headers) == (0, ([], []))
        return ("program",)

    def on_nvrtcCompileProgram(self, program: str, count: int, options: list[bytes]) -> tuple[()]:
        assert program == "program"
        assert count == len(options)
        self.options = options
        return ()

    def on_nvrtcGetPTXSize(self, program: str) -> tuple[int]:
        del program
        return (3,)

    def on_nvrtcGetPTX(self, program: str, target: bytes) -> tuple[()]:
        del program
        ctypes.memmove(ctypes.c_char_p(target), b"PTX", len(target))  # like the real function, this writes into the given bytes
        return ()

    def on_nvrtcDestroyProgram(self, program: str) -> tuple[()]:
        del program
        return ()
