"""What may import what: the layers, a run time without frameworks, and command lines that answer at once."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[1]
FRAMEWORKS = frozenset({"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "scipy"})
RUNTIMES = frozenset({"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "polygraphy", "ray", "openvino"})
RUN_TIME_PACKAGES = frozenset({"engines", "numpy", "pydantic", "click", "rich", "PIL"})


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter at the root of the repository."""
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_contracts_of_packages_and_rooms_hold() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert Counter(contract["type"] for contract in contracts) == {"layers": 4, "forbidden": 1, "independence": 1, "acyclic_siblings": 1}
    done = _run("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(contracts)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize(("package", "most"), [("engines", 14), ("calib", 5), ("ptqd_export", 12)])
def test_a_package_has_few_rooms_and_few_modules_beside_them(package: str, most: int) -> None:
    folders = {path.parent for path in (ROOT / package).glob("*/__init__.py")}
    modules = {path for path in (ROOT / package).glob("*.py") if path.stem not in ("__init__", "__main__")}
    assert len(folders) + len(modules) <= most
    assert len(modules) <= 8


@pytest.mark.parametrize("package", ["engines", "calib", "ptqd_export"])
def test_file_names_are_unique_within_a_package(package: str) -> None:
    names = Counter(path.name for path in (ROOT / package).rglob("*.py") if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_a_public_class_has_a_name_of_its_own() -> None:
    paths = (path for package in ("engines", "calib", "ptqd_export") for path in (ROOT / package).rglob("*.py"))
    classes = Counter(node.name for path in paths for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1 and not name.startswith("_")] == []


def test_no_folder_of_sources_is_called_as_if_it_were_generated() -> None:
    folders = {path.parent for package in ("engines", "calib", "ptqd_export", "tools", "tests") for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if {"build", "dist", "out"} & set(folder.relative_to(ROOT).parts)] == []


# Imports as they are written, lazy ones too


def _imported(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module", "importlib.import_module"):
            (name, *_) = node.args
            assert isinstance(name, ast.Constant), "a module by a computed name: nobody can see which"
            names.add(str(name.value))
    return {name.partition(".")[0] for name in names}


def _modules(*packages: str) -> Iterator[tuple[str, set[str]]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), _imported(path.read_text())


def test_lazy_and_dynamic_imports_are_seen() -> None:
    source = "def run():\n    import torch.nn as nn\n    from onnx import helper\n    import_module('scipy.stats')\n"
    assert _imported(source) == {"torch", "onnx", "scipy"}


def test_the_run_time_imports_nothing_but_what_it_is_installed_with() -> None:
    allowed = RUN_TIME_PACKAGES | sys.stdlib_module_names
    modules = dict(_modules("engines"))
    assert len(modules) > 30
    beyond = {path: imported - allowed for path, imported in modules.items() if imported - allowed}
    assert beyond == {
        "engines/backends/onnxruntime/onnxruntime_session.py": {"onnxruntime"},
        "engines/backends/openvino/openvino_network.py": {"openvino"},
        "engines/cluster/session.py": {"ray"},
        "engines/apps/compare/polygraphy_run.py": {"polygraphy"},
        "engines/networks/prompts.py": {"tokenizers"},
        "engines/networks/lora/lora_file.py": {"safetensors"},
        "engines/apps/serve/application.py": {"ray", "starlette"},
        "engines/apps/serve/serve_command.py": {"ray"},
        "engines/apps/serve/server_metrics.py": {"prometheus_client"},
        "engines/backends/tensorrt/device/cuda.py": {"cuda"},
        "engines/backends/tensorrt/flavour.py": {"tensorrt", "tensorrt_rtx"},
        "engines/backends/tensorrt/device/update_kernel.py": {"cuda"},
    }


def test_the_calibrator_knows_no_graphs() -> None:
    graphs = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "diffusers", "transformers"}
    assert {path: imported & graphs for path, imported in _modules("calib") if imported & graphs} == {}


def test_nothing_imports_tools_or_tests() -> None:
    assert [path for path, imported in _modules("engines", "calib", "ptqd_export") if imported & {"tools", "tests"}] == []
    assert [path for path, imported in _modules("tools") if "tests" in imported] == []


# Imports as they happen, in fresh interpreters

REPORT = f"print(sorted({set(FRAMEWORKS | RUNTIMES)!r} & sys.modules.keys()), file=sys.stderr)"


def test_importing_all_of_the_run_time_loads_no_framework() -> None:
    names = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path, _ in _modules("engines")}
    names.remove("engines.apps.compare.polygraphy_run")  # it derives a class from Polygraphy's, and its command imports it when it runs
    done = _run(f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n{REPORT}")
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize(("module", "commands"), [("ptqd_export.cli", 4), ("engines.cli", 2)])
def test_help_of_every_command_loads_no_framework(module: str, commands: int) -> None:
    program = (
        f"import sys\nfrom {module} import main\n"
        "for arguments in [['--help'], *([name, '--help'] for name in main.commands)]:\n"
        "    main(arguments, standalone_mode=False)\n"
    )
    done = _run(program + REPORT)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.count("Usage: ") >= 1 + commands


def test_sampling_loads_its_runtime_and_no_framework(tiny: TinyBundle, tmp_path: Path) -> None:
    arguments = ["sample", str(tiny.folder), "--num", "2", "--seed", "1", "--output", str(tmp_path / "out")]
    done = _run(f"import sys\nfrom engines.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n{REPORT}", *arguments)
    assert (done.returncode, done.stderr) == (0, "['onnxruntime']\n")
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["num"] == 2
