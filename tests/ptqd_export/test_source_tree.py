"""The modules that a module runs with are found in its imports, wherever they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ptqd_export.source_tree import SourceTree, imported_names

FILES = {
    "one/__init__.py": "",
    "one/first.py": "import one.second\nimport numpy as np\n",
    "one/second.py": "def later():\n    from one import third\n    from other.far import thing\n",
    "one/third.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from one import fourth\n",
    "one/fourth.py": "",
    "other/__init__.py": "",
    "other/far.py": "thing = 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _names(found: Mapping[str, Path], root: Path) -> dict[str, str]:
    return {name: path.relative_to(root).as_posix() for name, path in found.items()}


def test_imports_are_followed_into_functions_but_not_into_type_checking(root: Path) -> None:
    assert _names(SourceTree(root).reached("one.first"), root) == {
        "one": "one/__init__.py",
        "one.first": "one/first.py",
        "one.second": "one/second.py",
        "one.third": "one/third.py",
        "other": "other/__init__.py",
        "other.far": "other/far.py",
    }


def test_packages_apart_are_left_out(root: Path) -> None:
    assert SourceTree(root, ["one"]).reached("one.second").keys() == {"one", "one.second", "one.third"}
    assert SourceTree(root, ["one"]).reached("other.far") == {}


def test_a_module_that_is_not_there_reaches_nothing(root: Path) -> None:
    assert SourceTree(root).reached("one.fifth") == {}


def test_libraries_are_named_by_their_top_level_package(root: Path) -> None:
    assert {"numpy", "one", "one.second"} == imported_names(root / "one" / "first.py")
