"""Which source files a module runs with: its own, and those of the modules that it imports, directly or through others."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path


class SourceTree:
    """The modules under a folder, by their dotted names.

    Imports count wherever they are written, in functions too, but not those for type checkers alone.

    Args:
        root: the folder that module names start from.
        packages: top-level packages that belong to the tree; None takes all that lie in the folder.
    """

    def __init__(self, root: Path, packages: Collection[str] | None = None) -> None:
        self._root = root
        self._packages = packages

    def reached(self, module: str) -> dict[str, Path]:
        """The module and the modules of the tree that it imports, with their files; empty where the module is not in the tree."""
        reached, waiting = dict[str, Path](), [module]
        while waiting:
            name = waiting.pop()
            path = self._file(name)
            if name not in reached and path is not None:
                reached[name] = path
                waiting += [*_parents(name), *imported_names(path)]
        return reached

    def _file(self, module: str) -> Path | None:
        if self._packages is not None and module.partition(".")[0] not in self._packages:
            return None
        path = self._root.joinpath(*module.split("."))
        return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def imported_names(path: Path) -> frozenset[str]:
    """Every name that an import of the file may mean: of modules, of things in them, and of top-level packages."""
    return _names(path, path.stat().st_mtime_ns)


@cache
def _names(path: Path, _modified: int) -> frozenset[str]:
    return frozenset(_imported(ast.parse(path.read_bytes())))


def content_digest(path: Path) -> str:
    """Hash of the file."""
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
    """The packages that are imported before a module."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module
