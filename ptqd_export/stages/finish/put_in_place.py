"""Move a bundle that was put together beside it into its folder: at every moment the folder holds the old bundle, the new one, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.bundle.manifest import MANIFEST
from engines.host.files import sync


def install(made: Path, output: Path, replaced: tuple[str, ...]) -> None:
    """Take the old manifest away, then move the files of the new bundle, then its manifest; a folder without a manifest is no bundle.

    A few names change in between, and no content is written: that was done before, while the old bundle was still whole.

    Args:
        made: folder of the new bundle, on the same file system; gone afterwards.
        output: folder of the old one, if there is any.
        replaced: patterns of files that belong to a bundle: those of the old one that the new one does not have are removed.
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
