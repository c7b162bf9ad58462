"""A description of the machine that figures belong to."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engines.machine import cores, processor
from tools.bench.result import Machine

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")
PACKAGES = ("torch", "diffusers", "onnxruntime", "openvino", "numpy")


def this_machine() -> Machine:
    return Machine(processor(), cores(), _instructions(), {"python": platform.python_version(), **_versions()})


def _instructions() -> tuple[str, ...]:
    """Those of the list that the processor has, as far as the system says."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return ()
    flags = set() if found is None else set(found[1].split())
    return tuple(name for name in INSTRUCTIONS if name in flags)


def _versions() -> Mapping[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
