"""A removed schedule leaves the bundle as it was before it was added; the command lists what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from ptqd_export.cli import main
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.remove_schedule import remove_schedule
from ptqd_export.schedules.settings import ScheduleRequest

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def _files(built_tiny: TinyBundle) -> dict[str, bytes]:
    files = {path.relative_to(built_tiny.folder).as_posix(): path for path in built_tiny.folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("local/")}


@pytest.mark.parametrize("fit", ["moments", "walk"])
def test_bundle_is_as_before_to_the_last_byte(built_tiny: TinyBundle, fit: str) -> None:
    remove_schedule(built_tiny.folder, add_schedule(built_tiny.folder, "other", ScheduleRequest(mode="ptqd")).name)
    before = _files(built_tiny)  # with a manifest as this version writes it
    assert "schedules/other.json" not in before
    add_schedule(built_tiny.folder, "other", ScheduleRequest(mode="ptqd", fit=fit))  # type: ignore[arg-type]  # one of its literals
    assert _files(built_tiny) != before
    remove_schedule(built_tiny.folder, "other")
    assert _files(built_tiny) == before


@pytest.mark.parametrize(("name", "message"), [("default", "cannot be removed"), ("nothing", "no such schedule")])
def test_default_and_unknown_schedules_are_refused(built_tiny: TinyBundle, name: str, message: str) -> None:
    before = _files(built_tiny)
    with pytest.raises(UsageError, match=message):
        remove_schedule(built_tiny.folder, name)
    assert _files(built_tiny) == before


def test_command_lists_and_removes(built_tiny: TinyBundle) -> None:
    add_schedule(built_tiny.folder, "other", ScheduleRequest(mode="ptqd"))
    listed = CliRunner().invoke(main, ["schedule", str(built_tiny.folder)])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("default", "other"))
    assert max(map(len, listed.stdout.splitlines())) <= 80
    removed = CliRunner().invoke(main, ["schedule", str(built_tiny.folder), "--remove", "other"])
    assert (removed.exit_code, removed.stdout) == (0, "removed schedule other\n")
    assert Bundle.open(built_tiny.folder).schedules == ("default",)


@pytest.mark.parametrize("arguments", [["--steps", "3"], ["--remove", "other", "--name", "third"]])
def test_options_that_would_be_ignored_are_refused(built_tiny: TinyBundle, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["schedule", str(built_tiny.folder), *arguments])
    assert result.exit_code == 2
    assert "only with --name" in result.stderr
