"""Time functions in turn, so that a slowdown of the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, on_run: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Call the functions in turn and return each one's median seconds over `rounds` rounds, after `warm_up` uncounted rounds.

    `on_run` is called after every call, outside the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
            on_run()
    return {name: statistics.median(values) for name, values in seconds.items()}
