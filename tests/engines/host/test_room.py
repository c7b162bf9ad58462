"""Too little room: told before the work, or by one message that names the file, with nothing half-written left."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from engines.apps.pictures.rendering import PngRenderer, RawRenderer
from engines.apps.sample.sample_output import NpzOutput, PngOutput
from engines.cli import main
from engines.errors import PtqdError
from engines.host.files import replacing, write_text
from engines.host.held_states import HeldStates
from engines.host.room import SMALL_FILES, NoRoomError, check_room, free_bytes, naming_full_disks, size_text
from engines.networks.image_decoder import Decoder
from tests.small_disks import largest_file, small_disk

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

LIMIT = 4096
NOISE = np.random.default_rng(0).uniform(-1, 1, (2, 1, 128, 128)).astype(np.float32)
NUMBERS = np.array([3, 4])


def _write_text(folder: Path) -> None:
    write_text(folder / "report.html", "x" * 10 * LIMIT)


def _write_pictures(folder: Path) -> None:
    PngOutput(folder, ["", ""]).add(NUMBERS, PngRenderer(Decoder())(NUMBERS, NOISE))


def _write_archive(folder: Path) -> None:
    with closing(NpzOutput(folder, None)) as output:
        output.add(NUMBERS, RawRenderer(None)(NUMBERS, NOISE))
        output.finish()


WRITERS = {"report.html": _write_text, "00000003.png": _write_pictures, "samples.npz": _write_archive}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))
def test_a_write_that_fails_half_done_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(NoRoomError) as caught, largest_file(LIMIT):
        write(tmp_path)
    assert caught.value.exit_code == 1
    assert f"found:    {tmp_path / name}: File too large; " in str(caught.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "old"}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=list(WRITERS))
def test_on_a_full_disk_it_is_the_same(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", 4 * LIMIT) as disk:
        (disk / name).write_text("old")
        with pytest.raises(NoRoomError) as caught:
            write(disk)
        left = re.search(r"found:    (\S+): No space left on device; (\d+ bytes|[\d.]+ kB) free", str(caught.value))
        assert left is not None
        assert Path(left[1]) == disk / name
        assert {path.name: path.read_text() for path in disk.iterdir()} == {name: "old"}


def test_sampling_on_a_full_disk_is_one_message_and_every_picture_that_is_there_is_whole(tiny: TinyBundle, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 * LIMIT) as disk:
        done = CliRunner().invoke(main, ["sample", str(tiny.folder), "--num", "40", "--seed", "1", "--output", str(disk / "out")])
        names = sorted(path.name for path in (disk / "out").iterdir())
        assert 5 < len(names) <= 16
        assert names == [f"{n:08d}.png" for n in range(len(names))]
        for name in names:
            with Image.open(disk / "out" / name) as image:
                image.load()
    failed = disk / "out" / f"{len(names):08d}.png"
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: A file cannot be written for lack of space.\n  found:    {failed}: No space left on device; ")


def test_samples_that_evaluate_holds_for_the_comparison_are_an_error_too() -> None:
    with (
        pytest.raises(PtqdError, match=r"(?s)cannot be kept.*File too large; .* free"),
        largest_file(LIMIT),
        HeldStates((1, 128, 128)) as held,
    ):
        held.write(NOISE)


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.01)
    check_room(tmp_path / "not" / "yet", 0, "stage trace")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_says_how_much_is_needed_and_how_much_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.host.room.free_bytes", lambda _: 3 * 10**9)
    check_room(tmp_path, 3 * 10**9 - SMALL_FILES, "stage trace")
    with pytest.raises(NoRoomError) as caught:
        check_room(tmp_path, 5 * 10**9, "stage trace")
    assert str(caught.value) == (
        "There is too little disk space for stage trace.\n"
        f"  found:    {tmp_path}: 3.0 GB free\n"
        "  expected: about 5.0 GB\n"
        "  mend:     free some space and run again; finished work is kept"
    )


def test_a_small_disk_has_as_much_room_as_the_system_says(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        assert free_bytes(disk / "new") == 2**20
        with pytest.raises(NoRoomError, match=f"{disk}: 1.0 MB free"):
            check_room(disk, 0, "stage trace")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_innermost_path_is_the_one_that_is_named(tmp_path: Path, code: int) -> None:
    with pytest.raises(NoRoomError, match="inner: "), naming_full_disks(tmp_path / "outer"), replacing(tmp_path / "inner"):
        raise OSError(code, "full")


def test_other_errors_of_the_system_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), naming_full_disks(tmp_path):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize(("count", "text"), [(999, "999 bytes"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (4 * 10**9, "4.0 GB")])
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size_text(count) == text
