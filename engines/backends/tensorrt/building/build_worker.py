"""Run the TensorRT builder in its own process, which contains its crashes, hangs and memory use.

    python -m engines.backends.tensorrt.building.build_worker SPEC_JSON ENGINE_FILE [TIMING_CACHE]

Standard output carries events for `engine_builder`, one JSON object per line. The libraries' own output goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.backends.tensorrt.flavour import network_flags
from engines.errors import PtqdError
from engines.host.files import replacing
from engines.host.locks import locked
from engines.host.room import naming_full_disks

Emit: TypeAlias = Callable[..., None]


def main(spec_json: str, engine_file: str, timing_cache: str | None = None) -> int:
    """Build an engine, report progress and errors as events, and return the exit code."""
    emit = _event_stream()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        engine = _build(BuildSpec.from_json(spec_json), emit, None if timing_cache is None else Path(timing_cache))
        with naming_full_disks(Path(engine_file)):
            Path(engine_file).write_bytes(engine)
    except PtqdError as error:
        emit("error", message=str(error))
        return 1
    emit("done")
    return 0


def _end_with_parent() -> None:
    """Exit when standard input is closed, which happens when the parent ends, even if it is killed."""
    os.read(sys.stdin.fileno(), 1)  # `sys.stdin.read` would hold a lock that blocks this process's exit
    os._exit(1)


def _event_stream() -> Emit:
    """Reserve standard output for events; return a thread-safe function that writes one, since builder threads report concurrently."""
    file = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: str, **fields: object) -> None:
        with lock:
            file.write(json.dumps({"event": event, **fields}) + "\n")

    return emit


def _build(spec: BuildSpec, emit: Emit, timing_cache: Path | None) -> bytes:
    trt = spec.traits.load()
    logger = _logger(trt, emit)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, logger, spec.graph)
    config = builder.create_builder_config()
    monitor = _monitor(trt, emit)  # the builder keeps no reference to it
    config.progress_monitor = monitor
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector omits the kernels' types
    _set_limits(trt, config, spec)
    _mark_refittable(trt, config, network, spec)
    _add_profile(builder, config, network, spec)
    if timing_cache is not None:
        _read_timings(config, timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise PtqdError("TensorRT cannot build the graph.", found=str(spec.graph), mend="see the builder's messages")
    if timing_cache is not None:
        _add_timings(config, timing_cache)
    return bytes(engine)


def _parse(trt: Any, network: Any, logger: Any, graph: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise PtqdError(
            "TensorRT's parser refuses the graph.",
            found=f"{graph}: " + "; ".join(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors),
            mend="rebuild the bundle for this target",
        )


def _set_limits(trt: Any, config: Any, spec: BuildSpec) -> None:
    if spec.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(spec.workspace_gib * 2**30))
    if spec.traits.portable and spec.compute_capabilities:
        config.num_compute_capabilities = len(spec.compute_capabilities)
        for index, name in enumerate(spec.compute_capabilities):
            config.set_compute_capability(_capability(trt, name), index)


def _mark_refittable(trt: Any, config: Any, network: Any, spec: BuildSpec) -> None:
    if spec.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    refused = [name for name in spec.refittable if not network.mark_weights_refittable(name)]
    if refused:
        raise PtqdError("TensorRT has no such weights to refit.", found=", ".join(refused[:3]), mend="build an engine of the changed graph")


def _capability(trt: Any, name: str) -> Any:
    known = {member: value for member, value in trt.ComputeCapability.__members__.items() if member.startswith("SM")}
    if name not in known:
        raise PtqdError("The flavour does not support this compute capability.", found=name, expected=" or ".join(known))
    return known[name]


def _add_profile(builder: Any, config: Any, network: Any, spec: BuildSpec) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        free, *shape = tuple(tensor.shape) or (0,)
        if free == -1:
            profile.set_shape(tensor.name, *((rows, *shape) for rows in (spec.profile.min, spec.profile.opt, spec.profile.max)))
    config.add_optimization_profile(profile)


def _read_timings(config: Any, path: Path) -> None:
    with locked(path):
        content = path.read_bytes() if path.exists() else b""
    config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)


def _add_timings(config: Any, path: Path) -> None:
    """Merge the new timings into the stored ones, to which other builds may have added meanwhile."""
    with locked(path):
        timings = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        timings.combine(config.get_timing_cache(), ignore_mismatch=False)
        with replacing(path) as temporary:
            temporary.write_bytes(bytes(timings.serialize()))


def _logger(trt: Any, emit: Emit) -> Any:
    class EventLogger(trt.ILogger):  # type: ignore[misc]  # the base class depends on the flavour
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.INFO:
                emit("log", severity=severity.name, message=message)

    return EventLogger()


def _monitor(trt: Any, emit: Emit) -> Any:
    class EventMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class depends on the flavour
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            emit("start", phase=phase_name, parent=parent_phase, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            emit("step", phase=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            emit("finish", phase=phase_name)

    return EventMonitor()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
