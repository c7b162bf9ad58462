"""Moves a new bundle into its folder. At every moment the folder holds the old bundle, the new one, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.bundle.manifest import MANIFEST
from engines.host.files import sync


def install(made: Path, output: Path, replaced: tuple[str, ...]) -> None:
    """Remove the old manifest, then moves the files of the new bundle, then its manifest. A folder without a manifest is not a bundle.

    This only renames files. Their content was written before, while the old bundle was still complete.

    Args:
        made: folder of the new bundle, on the same file system; removed at the end.
        output: folder of the old bundle, if there is one.
        replaced: patterns of the files of a bundle. Files of the old bundle that match but are not in the new one are removed.
    """
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()} - {Path(MANIFEST)}
    folders = {output / folder for file in files for folder in file.parents}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)
    sync(output)
    for file in sorted(files):
        (made / file).replace(output / file)
    for path in {path for pattern in replaced for path in output.glob(pattern) if path.is_file()}:
        if path.relative_to(output) not in files:
            path.unlink()
    for folder in folders:
        sync(folder)
    (made / MANIFEST).replace(output / MANIFEST)
    sync(output)
    shutil.rmtree(made)
