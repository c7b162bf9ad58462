"""Take steps whose state stays on the device: only noise and a few numbers are uploaded, and only the last state is downloaded.

The host prepares a step while the device still takes the one before: what goes up lies in two sets of pinned arrays, which the steps use in
turn, and a step waits only for the last step of its own set. Conditions do not change along a chain, so they go up once a batch. Features
that later steps reuse never leave the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.tensorrt.device.arena import Arena
from engines.backends.tensorrt.device.cuda import Stream
from engines.backends.tensorrt.device.update_kernel import HISTORY, UpdateArguments, UpdateKernels
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine
from engines.chain.denoiser import Denoiser, Denoisers
from engines.chain.finite import not_finite
from engines.chain.step import Move
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_denoiser import STATE, TIMESTEP, EngineDenoiser
from engines.networks.grouped_engine import engine_at

X, Z, NOT_FINITE = "step x", "step z", "step not finite"
CORRECTION = GAIN, OFFSET, STATE_GAIN = "step gain", "step offset", "step state gain"
PREDICTIONS = tuple(f"step prediction {index}" for index in range(HISTORY + 1))
"""Names of blocks in the arena; no network input has such a name."""


SETS = 2
"""Sets of pinned arrays: the device is at most this many steps behind the host."""


@dataclass
class _Pinned:
    """Pinned arrays of the arena that a step sends from and receives into.

    Attributes:
        arrays: arrays by name.
        done: event behind everything that the last step of this set has enqueued; None if the device has done it.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    done: Any = None

    def wait(self, stream: Stream) -> None:
        """Wait until the arrays may change, and what came down has arrived."""
        if self.done is not None:
            event, self.done = self.done, None
            stream.wait(event)


class DeviceStepper:
    """An `engines.chain.stepper.Stepper` on the device. All denoisers must run on TensorRT engines that share one arena.

    Args:
        denoisers: denoisers by precision.
        kernels: update kernels of the engines' device.
    """

    def __init__(self, denoisers: Denoisers, kernels: UpdateKernels) -> None:
        self._denoisers = denoisers
        self._kernels = kernels
        self._sets = tuple(_Pinned() for _ in range(SETS))
        self._arena: Arena | None = None

    def start(self, x: Float32, rows: Int64) -> None:
        self._x, self._rows = x, rows
        self._arena = None
        self._sent: dict[str, tuple[Any, ...]] = {}
        self._count = 0
        self._newest = self._known = 0
        self._taken: dict[int, tuple[str, float]] = {}

    def take(self, move: Move, z: Float32 | None) -> None:
        denoiser = _on_tensorrt(self._denoisers[move.network], move)
        engine = engine_at(denoiser.engine, move.step.timestep)
        assert isinstance(engine, TensorRtEngine)
        assert denoiser.combine is None, "the kernel's guidance is linear"
        branches = 2 if denoiser.guided else 1
        network_rows = branches * len(self._rows)
        engine.prepare(network_rows)
        arena = self._begin(engine, network_rows)
        pinned = self._sets[self._count % SETS]
        self._count += 1
        pinned.wait(arena.stream)
        self._check_finite(pinned)
        self._send_numbers(arena, pinned, move, z)
        pinned.arrays[TIMESTEP][:] = move.step.timestep
        arena.stream.upload(pinned.arrays[TIMESTEP], arena.address(TIMESTEP))
        self._send_conditions(arena, engine, denoiser, network_rows)
        scale = float(move.step.input_scale)
        self._kernels.place(arena.stream.handle, arena.address(X), scale, self._x.size, branches, arena.address(STATE))
        engine.enqueue(network_rows)
        self._kernels.update(arena.stream.handle, self._arguments(arena, move, branches, engine.output.name))
        arena.stream.download(arena.address(NOT_FINITE), pinned.arrays[NOT_FINITE])
        pinned.done = arena.stream.event()
        self._taken[move.index] = (move.network, move.step.timestep)

    def state(self) -> Float32:
        if self._arena is None:
            return self._x
        arena = self._arena
        last = self._sets[0].arrays[X]
        arena.stream.download(arena.address(X), last)
        arena.stream.synchronize()
        for pinned in self._sets:
            pinned.wait(arena.stream)
            self._check_finite(pinned)
        return last.copy()

    def _check_finite(self, pinned: _Pinned) -> None:
        """Raise an error if the kernel set its flag: one more than the index of the first step that gave NaN or infinity."""
        flag = int(pinned.arrays[NOT_FINITE][0])
        if flag:
            precision, timestep = self._taken[flag - 1]
            raise not_finite("The network's output is not finite, or the step's coefficients are too large.", precision, timestep, flag - 1)

    def _begin(self, engine: TensorRtEngine, rows: int) -> Arena:
        """Return the arena; at the first step, reserve its blocks and upload the state.

        Args:
            engine: engine of the step. The timestep of all engines has the same type.
            rows: rows of a call.
        """
        if self._arena is None:
            arena = engine.arena
            arena.stream.synchronize()  # a chain that failed may have left copies in the stream
            self._arena = arena
            channels, z_bytes = self._x.shape[1], self._x.nbytes
            states, corrections = dict.fromkeys((X, Z, *PREDICTIONS), z_bytes), dict.fromkeys(CORRECTION, 4 * channels)
            arena.reserve({**states, **corrections, NOT_FINITE: 4})
            (timestep,) = (spec for spec in engine.inputs if spec.name == TIMESTEP)
            for number, pinned in enumerate(self._sets):
                pinned.wait(arena.stream)
                for name, shape in {X: self._x.shape, Z: self._x.shape, **dict.fromkeys(CORRECTION, (channels,))}.items():
                    pinned.arrays[name] = arena.pinned(f"{name} {number}", shape, np.float32)
                pinned.arrays[TIMESTEP] = arena.pinned(f"{TIMESTEP} {number}", (rows, *timestep.shape), timestep.dtype)
                pinned.arrays[NOT_FINITE] = arena.pinned(f"{NOT_FINITE} {number}", (1,), np.int32)
                pinned.arrays[NOT_FINITE][:] = 0
            first = self._sets[0].arrays
            first[X][:] = self._x
            for name in (X, NOT_FINITE):
                arena.stream.upload(first[name], arena.address(name))
            arena.stream.synchronize()  # the flag that goes up now comes down into the same array
        return self._arena

    def _send_numbers(self, arena: Arena, pinned: _Pinned, move: Move, z: Float32 | None) -> None:
        sent: dict[str, Any] = {GAIN: move.gain, OFFSET: move.offset, STATE_GAIN: move.state_gain} | ({} if z is None else {Z: z})
        for name, value in sent.items():
            pinned.arrays[name][:] = value
            arena.stream.upload(pinned.arrays[name], arena.address(name))

    def _send_conditions(self, arena: Arena, engine: TensorRtEngine, denoiser: EngineDenoiser, rows: int) -> None:
        """Upload the conditions, unless they are in their buffers: a buffer that had to grow for another engine has lost them."""
        if denoiser.conditioning is None:
            return
        dtypes = {spec.name: spec.dtype for spec in engine.inputs}
        feeds = denoiser.conditioning.feeds(self._rows, guided=denoiser.guided)
        places = {name: (arena.address(name), rows, dtypes[name]) for name in feeds}
        missing = {name: feeds[name] for name, place in places.items() if self._sent.get(name) != place}
        if missing:
            arena.stream.synchronize()  # an earlier batch may still be leaving the engine's own pinned arrays
            engine.upload(missing, rows)
            self._sent |= places

    def _arguments(self, arena: Arena, move: Move, branches: int, output: str) -> UpdateArguments:
        """Return the kernel's arguments. The prediction buffers are used in rotation: this step overwrites the oldest."""
        step = move.step
        wanted = len(step.history_coeffs)
        assert wanted <= len(PREDICTIONS), "a sampler of higher order than the kernel knows"
        terms = min(wanted, self._known + 1)
        H = (*step.history_coeffs, *(0.0,) * (HISTORY + 1))[: HISTORY + 1]
        target = (self._newest + 1) % len(PREDICTIONS)
        earlier = [arena.address(PREDICTIONS[(target - age) % len(PREDICTIONS)]) for age in range(1, HISTORY + 1)]
        if wanted:
            self._newest, self._known = target, min(self._known + 1, wanted)
        else:
            self._known = 0
        P, Q = step.prediction_coeffs
        return UpdateArguments(
            x=arena.address(X),
            out=arena.address(output),
            gain=arena.address(GAIN),
            offset=arena.address(OFFSET),
            state_gain=arena.address(STATE_GAIN),
            z=arena.address(Z),
            h1=earlier[0],
            h2=earlier[1],
            h3=earlier[2],
            h4=earlier[3],
            prediction=arena.address(PREDICTIONS[target]),
            not_finite=arena.address(NOT_FINITE),
            n=self._x.size,
            inner=int(np.prod(self._x.shape[2:])),
            channels=self._x.shape[1],
            branches=branches,
            terms=terms,
            step=move.index,
            guidance=move.guidance,
            A=step.x_coeff,
            B=step.out_coeff,
            P=P,
            Q=Q,
            clip=0.0 if step.clip is None else step.clip,
            H0=H[0],
            H1=H[1],
            H2=H[2],
            H3=H[3],
            H4=H[4],
            sigma=move.sigma,
        )


def _on_tensorrt(denoiser: Denoiser, move: Move) -> EngineDenoiser:
    """Return the network of a step. Features stay in the arena's buffer `kept`, which the engines of a cut share by name."""
    assert isinstance(denoiser, EngineDenoiser), "a bank of TensorRT engines"
    if not move.reuses:
        return denoiser
    assert isinstance(denoiser, CutEngines), "a network that is cut"
    return denoiser.reusing
