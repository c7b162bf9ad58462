"""Which extra provides a module that is missing."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from engines.terminal import installed_packages
from engines.terminal.installed_packages import installed_versions, missing_extra


@pytest.fixture(autouse=True)
def _nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_packages, "_is_there", lambda _module: False)


def _mend(module: str) -> str | None:
    error = missing_extra(ModuleNotFoundError(f"No module named {module!r}", name=module))
    return None if error is None else str(error).split("mend:     ")[1]


@pytest.mark.parametrize(
    ("module", "mend"),
    [
        ("torch", "pip install 'ptqd-export[export]'"),
        ("torch.nn", "pip install 'ptqd-export[export]'"),
        ("onnx_ir", "pip install 'ptqd-export[export]'"),
        ("yaml", "pip install 'ptqd-export[export]'"),
        ("ray", "pip install 'ptqd-export[ray]'"),
        ("cuda.bindings", "pip install 'ptqd-export[gpu]' or pip install 'ptqd-export[rtx]'"),
        ("tensorrt_rtx", "pip install 'ptqd-export[rtx]'"),
    ],
)
def test_extra_is_named_by_the_module_that_its_package_provides(module: str, mend: str) -> None:
    assert _mend(module) == mend


@pytest.mark.parametrize("module", ["nowhere", "numpy", "pytest", "engines.nowhere", ""])
def test_module_of_no_extra_is_another_matter(module: str) -> None:
    assert _mend(module) is None


def test_installed_package_with_a_missing_part_is_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert _mend("onnx.nowhere") is None


def test_versions_of_what_is_installed() -> None:
    assert installed_versions("no-such-package", "numpy") == {"numpy": version("numpy")}
