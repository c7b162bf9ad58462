from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from ptqd_export.heap import trim_heap

MEGABYTES = 200


def _resident_megabytes() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_free_memory_below_memory_in_use_is_given_back() -> None:
    before = _resident_megabytes()
    blocks = [np.ones(2**16, dtype=np.uint8) for _ in range(16 * MEGABYTES)]
    last = blocks.pop()
    assert _resident_megabytes() - before > 0.8 * MEGABYTES
    del blocks
    trim_heap()
    assert _resident_megabytes() - before < 0.2 * MEGABYTES
    assert last.all()
