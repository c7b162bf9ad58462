"""Nothing of the product needs the package: it is for programs of users."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
IMPORT = re.compile(r"^\s*(?:from|import) ptqd_export\.diffusers\b", flags=re.MULTILINE)


def test_no_other_module_imports_it() -> None:
    modules = {path: path.read_text() for package in ("ptqd_export", "tools") for path in (ROOT / package).rglob("*.py")}
    importing = {path.parent.relative_to(ROOT).as_posix() for path, source in modules.items() if IMPORT.search(source)}
    assert importing == {"ptqd_export/diffusers"}
