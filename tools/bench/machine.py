"""Describe the machine on which the benchmark runs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from engines.host.machine import cores, instructions, processor
from tools.bench.result import Machine

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")
"""Instruction sets that affect the speed of networks."""

PACKAGES = ("torch", "diffusers", "onnxruntime", "openvino", "numpy")


def this_machine() -> Machine:
    known = instructions()
    having = tuple(name for name in INSTRUCTIONS if name in known)
    return Machine(processor(), cores(), having, {"python": platform.python_version(), **_versions()})


def _versions() -> Mapping[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
