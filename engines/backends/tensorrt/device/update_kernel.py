"""A sampler's step on the device: `engines.chain.update`, `engines.chain.correction` and guidance as one kernel, compiled on first use.

It is a kernel, not an engine, because it has ten numbers that change with every step, no weights, and nothing for a builder to choose.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from dataclasses import dataclass
from typing import Any

from engines.backends.tensorrt.device.cuda import Cuda, cuda_error
from engines.errors import MissingBackendError, PtqdError

THREADS = 256

HISTORY = 4
"""Number of earlier predictions that the kernel accepts: those of PLMS, the sampler with the longest memory."""

SOURCE = r"""
extern "C" __global__ void place(const float* x, float input_scale, int n, int branches, float* input) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float scaled = input_scale * x[i];
    for (int branch = 0; branch < branches; ++branch) input[branch * n + i] = scaled;
}

extern "C" __global__ void update(
    float* x, const float* out, const float* gain, const float* offset, const float* state_gain, const float* z,
    const float* h1, const float* h2, const float* h3, const float* h4, float* prediction, int* not_finite,
    int n, int inner, int channels, int branches, int terms, int step,
    float guidance, float A, float B, float P, float Q, float clip, float H0, float H1, float H2, float H3, float H4, float sigma) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float e = out[i];
    if (branches == 2) { float u = out[n + i]; e = u + guidance * (e - u); }
    int c = i / inner % channels;
    e = gain[c] * e + offset[c];
    e += state_gain[c] * x[i];
    float next = A * x[i] + B * e;
    if (terms > 0) {
        float m = P * x[i] + Q * e;
        if (clip > 0.0f) m = m < -clip ? -clip : (m > clip ? clip : m);   // keeps NaN, unlike fminf
        next += H0 * m;
        if (terms > 1) next += H1 * h1[i];
        if (terms > 2) next += H2 * h2[i];
        if (terms > 3) next += H3 * h3[i];
        if (terms > 4) next += H4 * h4[i];
        prediction[i] = m;
    }
    if (sigma > 0.0f) next += sigma * z[i];
    if (!(next - next == 0.0f) && *not_finite == 0) *not_finite = step + 1;   // NaN or infinity, also in the output: 0 * inf is NaN
    x[i] = next;
}
"""
"""Compiled without fused multiply-add, so that every product and sum is rounded as in numpy, in the same order."""

OPTIONS = ("--fmad=false", "--std=c++14")


@dataclass(frozen=True)
class UpdateArguments:
    """The arguments of the `update` kernel, with its names and in its order; pointers are device addresses."""

    x: int
    out: int
    gain: int
    offset: int
    state_gain: int
    z: int
    h1: int
    h2: int
    h3: int
    h4: int
    prediction: int
    not_finite: int
    n: int
    inner: int
    channels: int
    branches: int
    terms: int
    step: int
    guidance: float
    A: float
    B: float
    P: float
    Q: float
    clip: float
    H0: float
    H1: float
    H2: float
    H3: float
    H4: float
    sigma: float

    @property
    def values(self) -> tuple[int | float, ...]:
        return tuple(vars(self).values())


UPDATE_TYPES = (*[ctypes.c_void_p] * 12, *[ctypes.c_int] * 6, *[ctypes.c_float] * 12)
PLACE_TYPES = (ctypes.c_void_p, ctypes.c_float, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


class UpdateKernels:
    """The kernels of `SOURCE` on one device.

    Raises:
        MissingBackendError: the run-time compiler is not installed.
        PtqdError: the compiler refuses the source, or the driver refuses the compiled kernels.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._module = self._call("cuModuleLoadData", _compile(cuda.compute_capability()))
        weakref.finalize(self, self._driver.cuModuleUnload, self._module)
        self._place, self._update = (self._call("cuModuleGetFunction", self._module, name) for name in (b"place", b"update"))

    def place(self, stream: int, x: int, input_scale: float, n: int, branches: int, target: int) -> None:
        """Write `input_scale x` to the network's input at `target`, once per branch."""
        self._launch(self._place, n, stream, (x, input_scale, n, branches, target), PLACE_TYPES)

    def update(self, stream: int, arguments: UpdateArguments) -> None:
        """Take a step, overwriting `x`."""
        self._launch(self._update, arguments.n, stream, arguments.values, UPDATE_TYPES)

    def _launch(self, function: Any, n: int, stream: int, values: tuple[Any, ...], types: tuple[Any, ...]) -> None:
        blocks = -(-n // THREADS)
        self._call("cuLaunchKernel", function, blocks, 1, 1, THREADS, 1, 1, 0, stream, (values, types), 0)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._driver, function)(*arguments)
        if status != 0:
            raise cuda_error(function, status)
        return next(iter(results), None)


def _compile(compute_capability: str) -> bytes:
    """Compile `SOURCE` to PTX for a compute capability such as 8.9."""
    nvrtc = _nvrtc()
    program = _value(*nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"update.cu", 0, [], []))
    architecture = f"--gpu-architecture=compute_{compute_capability.replace('.', '')}"
    options = [option.encode() for option in (architecture, *OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != 0:
        log = b" " * _value(*nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise PtqdError("The update kernel does not compile.", found=log.decode(errors="replace"), mend="compute the step on the host")
    ptx: bytes = b" " * _value(*nvrtc.nvrtcGetPTXSize(program))
    _value(*nvrtc.nvrtcGetPTX(program, ptx))
    _value(*nvrtc.nvrtcDestroyProgram(program))
    return ptx


def _nvrtc() -> Any:
    try:
        nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise MissingBackendError(
            "CUDA's run-time compiler is not installed.",
            found=str(error),
            mend="install NVRTC (`pip install 'cuda-bindings[all]'`), or compute the step on the host",
        ) from error
    return nvrtc


def _value(status: Any, result: Any = None) -> Any:
    if status != 0:
        raise PtqdError("CUDA's run-time compiler reports an error.", found=f"{status.name} ({int(status)})")
    return result
