"""Fakes of CUDA's driver and run-time compiler: the kernels' own source is compiled for the host and run thread by thread."""

# ruff: noqa: N802  # the names are CUDA's and TensorRT's own

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

from tests.engines.backends.tensorrt.host_cuda import HostCuda
from tests.engines.backends.tensorrt.signatures import argument_counts

SHIM = """
struct Index { int x; };
extern "C" { Index blockIdx, blockDim, threadIdx; }
#define __global__
"""


def compile_for_host(compiler: str, source: str, folder: Path) -> ctypes.CDLL:
    """Compile the kernels to a library; products and sums are rounded separately, as on the device."""
    (folder / "kernels.cpp").write_text(SHIM + source)
    command = [compiler, "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


class HostModule:
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
            return (0, *implementation(self, *arguments))

        return call


class HostDriver(HostModule):
    def __init__(self, real: Any, library: ctypes.CDLL, cuda: HostCuda) -> None:
        super().__init__(real)
        self.library = library
        self.cuda = cuda

    def on_cuModuleLoadData(self, image: bytes) -> tuple[int]:
        assert image == b"PTX"
        return (5,)

    def on_cuModuleUnload(self, module: int) -> tuple[()]:
        assert module == 5
        return ()

    def on_cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any]:
        assert module == 5
        return (self.library[name.decode()],)

    def on_cuLaunchKernel(self, function: Any, *launch: Any) -> tuple[()]:
        blocks, one_block, one_more, threads, one_thread, one_other, shared, stream, (values, types), extra = launch
        assert (one_block, one_more, one_thread, one_other, shared, stream, extra) == (1, 1, 1, 1, 0, 7, 0)
        arguments = [kind(value) for kind, value in zip(types, values, strict=True)]

        def work() -> None:
            self._run(function, blocks, threads, arguments)

        self.cuda.enqueue(work)
        return ()

    def _run(self, function: Any, blocks: int, threads: int, arguments: list[Any]) -> None:
        block, size, thread = (ctypes.c_int.in_dll(self.library, name) for name in ("blockIdx", "blockDim", "threadIdx"))
        size.value = threads
        for block.value in range(blocks):
            for thread.value in range(threads):
                function(*arguments)


class HostNvrtc(HostModule):
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
