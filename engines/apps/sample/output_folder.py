"""The folder that one run of `ptqd-run sample` writes to. It holds the samples of no other run."""

from __future__ import annotations

import re
from pathlib import Path

from engines.apps.sample.sample_output import ARCHIVE, GRID
from engines.apps.sample.samples_record import RECORD
from engines.cluster.shards import PREFIX, remove_shards
from engines.errors import UsageError
from engines.host.files import PART

_OURS = rf"\d{{8,}}\.png|{re.escape(GRID)}|{re.escape(ARCHIVE)}|{re.escape(RECORD)}"
"""Names of the files that a run writes, besides the folder of a cluster's unfinished work. Every other file is the user's own."""


def check_unused(folder: Path) -> None:
    """Refuse a folder with the samples of another run, finished or not.

    Raises:
        UsageError: the folder has such samples.
    """
    names = sorted(path.name for path in (*_samples(folder), *folder.glob(f"{PREFIX}*")))
    if not names:
        return
    shown = f"{names[0]} and {len(names) - 1} more files" if len(names) > 1 else names[0]
    state = "a finished run" if RECORD in names else f"an interrupted run, because there is no {RECORD}"
    raise UsageError(
        "The output folder holds the samples of another run.",
        found=f"{shown} in {folder}, from {state}",
        expected="a folder without samples",
        mend="choose another --output, or pass --overwrite to remove these samples and start over",
    )


def remove_samples(folder: Path, but: Path | None) -> None:
    """Remove the samples of other runs, the record first, and the partial files of killed ones.

    Args:
        folder: the folder.
        but: unfinished work of a cluster to keep, see `shards_folder`; None removes all.
    """
    remove_shards(folder, but)
    for path in sorted(_samples(folder), key=lambda path: path.name != RECORD):
        path.unlink(missing_ok=True)
    for path in folder.glob(f".*{PART}"):
        if re.fullmatch(rf"\.({_OURS})\..*", path.name):
            path.unlink(missing_ok=True)


def _samples(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if re.fullmatch(_OURS, path.name) and not path.is_dir()]
