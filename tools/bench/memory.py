"""Read this process's memory use from the system."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal


def memory_mib(what: Literal["VmRSS", "VmHWM", "RssAnon", "RssFile"]) -> float:
    """Return a figure of the kernel in MiB: resident memory (`VmRSS`), its peak so far (`VmHWM`), its anonymous pages (`RssAnon`), or its
    file pages (`RssFile`).

    `getrusage` would count the parent that the process was forked from.
    """
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
