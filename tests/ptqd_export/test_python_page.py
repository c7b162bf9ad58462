"""`docs/python.md`: its examples run as they stand, and its tables list what the packages hold."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import engines
import ptqd_export
import ptqd_export.diffusers

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def rows(header: str) -> dict[str, str]:
    """The table below a header row: the second cell of each row by the first, without backticks."""
    (table,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|-.*\n((?:\|.*\n)+)", PAGE.read_text(), flags=re.MULTILINE)
    cells = [line.strip("|").replace("`", "").split(" | ") for line in table.splitlines()]
    return {first.strip(): second.strip() for first, second, *_ in cells}


@pytest.fixture
def folder(class_model: Path, class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `model`, and finished stages of `bundle` that its build can reuse."""
    shutil.copytree(class_model, tmp_path / "model")
    class_build.resumed_in(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_examples_run_in_one_program(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["plan"].precisions == ("w8a8", "w4a8")
    for name in ("full", "plain"):
        assert (names[name].dtype, names[name].shape) == (np.uint8, (2, 8, 8, 1))
    assert (names["full"] != names["plain"]).any()
    assert names["states"].dtype == np.float32
    assert [preview.shape for preview in names["previews"]] == [(2, 8, 8, 1)] * 3
    assert names["images"].shape == (2, 8, 8, 1)
    assert names["bundle"].schedules["three"].precision_steps == {"w8a8": 3}
    printed = capsys.readouterr().out
    for words in (
        "statistics: ",
        "step 3 of 4 at ",
        "default ddim 4 {",
        "fp32: 0.",
        "conv_in: first or last layer",
        "schedule three: ",
        "The schedule has no such precision.",
    ):
        assert words in printed


def test_public_names_are_those_of_the_packages() -> None:
    for name, module in (("engines", engines), ("ptqd_export", ptqd_export), ("ptqd_export.diffusers", ptqd_export.diffusers)):
        assert sorted(rows("module")[name].split(", ")) == sorted(module.__all__)


def test_arguments_are_those_of_sample_with_their_defaults() -> None:
    told = {name: default for names, defaults in rows("argument").items() for name, default in _paired(names, defaults)}
    parameters = inspect.signature(engines.OpenBundle.sample).parameters
    assert told == {name: repr(one.default).replace("'", '"') for name, one in parameters.items() if name != "self"}
    taken = inspect.signature(engines.OpenBundle.chain).parameters
    assert {*taken} == {*parameters} - {"batch_size", "latents"}
    assert all(one.default == parameters[name].default for name, one in taken.items() if name not in ("self", "num"))


def _paired(names: str, defaults: str) -> list[tuple[str, str]]:
    """Arguments that share a row, with their defaults: one for each, or one for all."""
    listed, values = names.split(", "), defaults.split(", ")
    return [*zip(listed, values if len(values) == len(listed) else values * len(listed), strict=True)]


def test_fields_of_types_are_listed() -> None:
    for name, fields in rows("type").items():
        named = {field for field in re.findall(r"\w+", fields.split(" with a ")[0]) if field != "and"}
        assert named == {field.name for field in dataclasses.fields(getattr(engines, name))}
    fields_of_steps = {name for names in rows("field of a step") for name in names.split(", ")}
    assert fields_of_steps == {field.name for field in dataclasses.fields(engines.ChainStep)} - {"decoder"} | {"preview()"}
