"""Profile an engine by kind of operator with ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine

CALLS = 20


def profiled(engine: OnnxRuntimeEngine, feeds: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the milliseconds of a network call by operator, in descending order.

    The kernels are those of the engine: a second session opens the same file with the same options and runs the same pieces of the batch.
    Pieces run at the same time, so the figures are sums over all threads.
    """
    with tempfile.TemporaryDirectory() as folder:
        watched = engine.watched(Path(folder) / "profile")
        for _ in range(1 + CALLS):
            watched.run(feeds)
        return by_operator(json.loads(watched.end_profiling().read_text()), CALLS)


def by_operator(events: Iterable[Mapping[str, Any]], calls: int) -> dict[str, float]:
    """Return the milliseconds per call from the profiler's events; one more call, the first, is a warm-up and does not count.

    A call runs each node once for every piece of the batch. A node counts with its median time, which load on the machine inflates less.
    """
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    milliseconds: dict[str, float] = defaultdict(float)
    for (operator, _), of_node in durations.items():
        pieces = len(of_node) // (1 + calls)
        milliseconds[operator] += pieces * statistics.median(of_node[pieces:])
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))
