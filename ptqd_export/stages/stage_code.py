"""Identifies what a stage's result depends on besides its inputs: its code, and the libraries that the code uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

from ptqd_export.source_tree import SourceTree, content_digest, imported_names

PACKAGES = ("engines", "calib", "ptqd_export")

LIBRARIES = frozenset(
    {
        "torch", "numpy", "scipy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "diffusers", "transformers", "tokenizers", "safetensors",
        "ml_dtypes", "PIL", "matplotlib",
    }
)  # fmt: skip
"""Import names of the libraries whose version may change a result."""

UNDERNEATH = {"onnx_ir": "onnx", "onnxscript": "onnx"}
"""Libraries that other libraries of the list call."""


class StageCode:
    """The code of a stage: the module that makes it, and all of the project's modules that this module imports.

    Editing the server, for example, reruns nothing, because no stage imports it.

    Args:
        root: folder of the project's packages.
    """

    def __init__(self, root: Path) -> None:
        self._tree = SourceTree(root, PACKAGES)
        self._version = cache(version)  # each call reads a file

    def key(self, module: str) -> dict[str, object]:
        """Return JSON values that change with the code of a module, or with the version of a library that it uses."""
        return {"code": self.digest(module), "libraries": self.libraries(module)}

    def digest(self, module: str) -> str:
        """Return the SHA-256 of the code."""
        found = hashlib.sha256()
        for name, path in sorted(self._tree.reached(module).items()):
            found.update(f"{name} {content_digest(path)}\n".encode())
        return found.hexdigest()

    def libraries(self, module: str) -> dict[str, str]:
        """Return the versions of the `LIBRARIES` that the code uses, by name of the installed package."""
        used = {name for path in self._tree.reached(module).values() for name in imported_names(path)} & LIBRARIES
        used |= {UNDERNEATH[name] for name in used if name in UNDERNEATH}
        return {package: self._version(package) for name in sorted(used) for package in _packages().get(name, ())}


@cache
def _packages() -> Mapping[str, list[str]]:
    """Return the installed packages by import name."""
    return {name: sorted(set(packages)) for name, packages in packages_distributions().items() if name in LIBRARIES}
