"""`ptqd-export inspect`: what it prints is what lies in the bundle's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ptqd_export.cli import main

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

ROOT = Path(__file__).parents[3]
PRECISIONS = ("w8a8", "w4a8", "w4a4", "w3a8")


def inspect(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["inspect", str(folder), *options])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def document(class_build: Built) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(inspect(class_build.folder, "--json"))
    return content


def test_the_document_holds_the_manifest_and_the_settings_of_schedules(class_build: Built, document: dict[str, Any]) -> None:
    manifest, schedule = class_build.json("manifest.json"), class_build.json("schedules/default.json")
    for key in ("model", "target", "placement", "versions"):
        assert document[key] == manifest[key]
    assert document["files"] == {name: record["bytes"] for name, record in manifest["files"].items()}
    told = document["schedules"]["default"]
    assert {key: told[key] for key in ("steps", "eta", "guidance")} == {
        key: schedule["sampler"][key] for key in ("steps", "eta", "guidance")
    }
    assert {key: told[key] for key in ("mode", "parts", "variance")} == schedule["correction"]
    assert sum(told["precision_steps"].values()) == len(schedule["steps"])


def test_the_document_holds_sizes_and_savings(class_build: Built, document: dict[str, Any]) -> None:
    manifest = class_build.json("manifest.json")
    assert set(document["precisions"]) == {"fp32", *PRECISIONS}
    for name, told in document["precisions"].items():
        record = manifest["precisions"][name]
        assert {key: told[key] for key in ("graph", "weight_bits", "bit_operations_saved_all")} == {
            key: record[key] for key in ("graph", "weight_bits", "bit_operations_saved_all")
        }
        files = [class_build.folder / record["graph"], class_build.folder / f"{record['graph']}.data"]
        assert told["bytes"] == sum(file.stat().st_size for file in files if file.exists())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_have_the_bits_scales_and_costs_of_their_quantizers(class_build: Built, document: dict[str, Any], precision: str) -> None:
    quantized = {layer.layer.name: layer for layer in class_build.quantize(precision)}
    macs = {layer.name: layer.macs for layer in class_build.network.layers}
    assert [layer["name"] for layer in document["layers"]] == list(macs)
    for layer in document["layers"]:
        told = layer["precisions"][precision]
        assert told["bit_operations"] == macs[layer["name"]] * (told["weight_bits"] or 32) * (told["activation_bits"] or 32)
        found = quantized.get(layer["name"])
        if found is None:
            assert (told["weight_bits"], told["weight"], told["input"]) == (None, None, None)
            assert told["reason"]
            continue
        scale = found.weight.scale
        assert told["weight"] == {"channels": len(scale), "group": None, "smallest": scale.min().item(), "largest": scale.max().item()}
        assert told["input"] == (None if found.input is None else {"scale": found.input.scale, "zero_point": found.input.zero_point})


def test_tables_fit_80_columns_and_name_every_layer(class_build: Built, document: dict[str, Any]) -> None:
    lines = inspect(class_build.folder).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for layer in document["layers"]:
        assert lines.count(layer["name"]) == len(PRECISIONS)
    for words in ("guidance", "ddim, eta 1", "3 classes", "bit ops saved", *PRECISIONS, "[1] "):
        assert words in text


def test_it_needs_no_framework(class_build: Built) -> None:
    program = (
        "import sys\n"
        "from ptqd_export.cli import main\n"
        "main(['inspect', sys.argv[1]], standalone_mode=False)\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'diffusers', 'scipy'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, class_build.folder], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == "[]\n"
