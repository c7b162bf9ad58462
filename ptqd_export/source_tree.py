"""Finds the source files that a module depends on: its own, and those of the modules it imports directly or indirectly."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path


class SourceTree:
    """The modules under a folder, by their dotted names.

    All imports count, including those inside functions, except imports for type checkers only. Imports are read once: make another tree
    after an edit.

    Args:
        root: folder that contains the top-level packages.
        packages: top-level packages that belong to the tree; None takes every package in the folder.
    """

    def __init__(self, root: Path, packages: Collection[str] | None = None) -> None:
        self._root = root
        self._packages = packages
        self._files: dict[str, Path | None] = {}
        self._direct: dict[str, list[str]] = {}

    def reached(self, module: str) -> dict[str, Path]:
        """Return the module and the modules of the tree that it imports, with their files; empty if the module is not in the tree."""
        reached, waiting = dict[str, Path](), [module]
        while waiting:
            name = waiting.pop()
            path = self._file(name)
            if name not in reached and path is not None:
                reached[name] = path
                waiting += self._needed(name, path)
        return reached

    def _needed(self, module: str, path: Path) -> list[str]:
        """Return the modules of the tree that a module imports directly."""
        if module not in self._direct:
            self._direct[module] = [name for name in (*_parents(module), *imported_names(path)) if self._file(name) is not None]
        return self._direct[module]

    def _file(self, module: str) -> Path | None:
        if module not in self._files:
            self._files[module] = self._find(module)
        return self._files[module]

    def _find(self, module: str) -> Path | None:
        if self._packages is not None and module.partition(".")[0] not in self._packages:
            return None
        path = self._root.joinpath(*module.split("."))
        return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def imported_names(path: Path) -> frozenset[str]:
    """Return every name that an import in the file may refer to: modules, names inside modules, and top-level packages."""
    return _names(path, path.stat().st_mtime_ns)


@cache
def _names(path: Path, _modified: int) -> frozenset[str]:
    return frozenset(_imported(ast.parse(path.read_bytes())))


def content_digest(path: Path) -> str:
    """Return the SHA-256 of the file."""
    return _digest(path, path.stat().st_mtime_ns)


@cache
def _digest(path: Path, _modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (part for alias in node.names for part in (alias.name, alias.name.partition(".")[0]))
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        yield from (node.module, node.module.partition(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names))
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


def _parents(module: str) -> Iterator[str]:
    """Yield the parent packages of a module, which are imported before it."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module
