"""Profile an engine by kind of operator with ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.backends.base import Engine

CALLS = 5


def profiled(engine: Engine, graph: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the milliseconds of a network call by operator, in descending order.

    The graph is opened a second time with the engine's own options and the profiler on. All rows go through the graph in one call; if the
    engine splits the batch into shards, the time is that of all shards together.
    """
    import onnxruntime

    session = engine._session  # type: ignore[attr-defined]  # the only way to get its options
    options = session.get_session_options()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        watched = onnxruntime.InferenceSession(graph, options, providers=session.get_providers())
        for _ in range(1 + CALLS):
            watched.run(None, dict(feeds))
        return by_operator(json.loads(Path(watched.end_profiling()).read_text()), CALLS)


def by_operator(events: Iterable[Mapping[str, Any]], calls: int) -> dict[str, float]:
    """Return the milliseconds per call from the profiler's events; the first call of each node is a warm-up and does not count."""
    seen: dict[str, int] = defaultdict(int)
    milliseconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        seen[event["name"]] += 1
        if seen[event["name"]] > 1:
            milliseconds[event["args"]["op_name"]] += event["dur"] / 1000 / calls
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))
