"""Memory of this process, as the system counts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal


def memory_mib(what: Literal["VmRSS", "VmHWM", "RssFile"]) -> float:
    """Resident now (`VmRSS`), pages of files among it (`RssFile`), or at most so far (`VmHWM`).

    (`getrusage` would count the parent that the process was forked from.)
    """
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
