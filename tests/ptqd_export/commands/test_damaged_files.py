"""`ptqd-export inspect` and `report` notice damage to any file of a bundle, also to files that nothing else would read.

A network in pieces is such a case: the run time opens the pieces, and never the whole graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from ptqd_export.cli import main

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def _flip(path: Path) -> None:
    """Change one bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "A file of the bundle is missing."),
    "truncated": (_truncate, "A file of the bundle was changed or damaged."),
    "one bit flipped": (_flip, "A file of the bundle was changed or damaged."),
}


@pytest.fixture(scope="module")
def copied(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose networks are in pieces; whoever damages a file mends it."""
    folder = tmp_path_factory.mktemp("damaged") / "bundle"
    shutil.copytree(class_build.folder, folder, ignore=shutil.ignore_patterns("local"))
    return folder


def refusal(command: str, folder: Path) -> str:
    """What a command says of a damaged bundle."""
    done = CliRunner().invoke(main, [command, str(folder)])
    assert (done.exit_code, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed_and_named(class_build: Built, copied: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    files = class_build.json("manifest.json")["files"]
    assert {"graphs/onnxruntime/w4a8.onnx", "graphs/onnxruntime/w4a8.body.onnx"} <= files.keys()
    for name in files:
        content = (copied / name).read_bytes()
        change(copied / name)
        for command in ("inspect", "report"):
            said = refusal(command, copied)
            assert message in said
            assert str(copied / name) in said
        (copied / name).write_bytes(content)


def test_what_was_mended_is_whole_again(copied: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(copied), "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
