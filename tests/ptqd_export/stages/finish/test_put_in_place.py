"""A new bundle takes the place of an old one: whoever opens the folder meanwhile finds one of them whole, or is told to build again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from ptqd_export.stages.finish.put_in_place import install
from tests.dying import every_death
from tests.ptqd_export.stages.whole_builds import portable

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

PATTERNS = ("graphs/**/*", "schedules/**/*", "statistics/**/*")


def _found(folder: Path) -> int | str:
    """The channels of the bundle, by which one knows which it is, every file of it with its hash; or what is wrong."""
    try:
        bundle = Bundle.open(folder)
    except UsageError as error:
        return str(error).partition("\n")[0]
    for name in bundle.manifest.files:
        bundle.path(name)
    return bundle.manifest.model.sample_shape[0]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def test_the_old_one_is_whole_or_the_new_one_is_or_there_is_none_wherever_the_process_dies(
    tiny: TinyBundle, tiny_latent: TinyBundle, output: Path
) -> None:
    old, new, made = tiny.folder, tiny_latent.folder, output / ".unfinished"

    def prepare() -> None:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(old, output)
        (output / "local" / "stages").mkdir(parents=True)
        (output / "local" / "times.json").write_text("{}")
        for name in ("schedules/another.json", "statistics/onnxruntime/another/w4a8.json"):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text("of the old one")
        shutil.copytree(new, made)

    found = []
    for _ in every_death(prepare, lambda: install(made, output, PATTERNS)):
        found.append(_found(output))
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(new, made)
        install(made, output, PATTERNS)
        assert portable(output) == portable(new)
        assert (output / "local" / "times.json").read_text() == "{}"
    unfinished = "The build of this bundle has not finished."
    kinds: list[int | str] = [1, unfinished, 4]
    assert set(found) == set(kinds)
    assert found == sorted(found, key=kinds.index)
    assert found.count(unfinished) > len(portable(new))  # every file moved, and every old one removed


def test_a_folder_without_a_bundle_gets_one(tiny: TinyBundle, output: Path) -> None:
    made = Path(shutil.copytree(tiny.folder, output / ".unfinished"))
    (output / "notes.txt").write_text("a file of the user's")
    install(made, output, PATTERNS)
    assert portable(output) == {"notes.txt": b"a file of the user's", **portable(tiny.folder)}


def test_a_folder_of_something_else_is_no_unfinished_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="This is not a bundle"):
        Bundle.open(tmp_path)
