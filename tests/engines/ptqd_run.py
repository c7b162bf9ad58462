"""Runs `ptqd-run` in this process, and reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from click.testing import CliRunner, Result

from engines.arrays import Float32
from engines.cli import main

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sample(bundle: TinyBundle, output: Path, *options: object, num: int = 6, seed: int = 5) -> Result:
    return run("sample", bundle.folder, "--num", num, "--seed", seed, "--output", output, *options)


def sampled(bundle: TinyBundle, output: Path, *options: object, num: int = 6) -> Path:
    result = sample(bundle, output, *options, num=num)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return output


def states(bundle: TinyBundle, output: Path, *options: object, num: int = 6) -> Float32:
    with np.load(sampled(bundle, output, "--format", "npz", *options, num=num) / "samples.npz") as archive:
        read: Float32 = archive["samples"]
    assert read.dtype == np.float32
    return read


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "samples.json").read_text())
    return content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
