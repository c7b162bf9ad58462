"""Free memory that lies below memory in use, in a process that holds no other."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEGABYTES = 200

SCRIPT = f"""
from pathlib import Path
import numpy as np
from engines.host.heap import release_free_pages

def resident():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

before = resident()
blocks = [np.ones(2**16, dtype=np.uint8) for _ in range(16 * {MEGABYTES})]
last = blocks.pop()
grown = resident() - before
del blocks
release_free_pages()
print(grown, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such call")
def test_free_memory_below_memory_in_use_is_given_back() -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    grown, left = map(float, printed.split())
    assert grown > 0.8 * MEGABYTES
    assert left < 0.2 * MEGABYTES
