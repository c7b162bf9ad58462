"""Fixtures for reports: bundles with random statistics and pictures, made without a build, results of `ptqd-run`, and a page parser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from calib.correction.correction_fit import BOTH_PARTS
from calib.correction.moments import GUIDED, Moments
from calib.correction.step_fit import CorrectionChoice
from calib.walk.fitted_schedule import record_of, schedule_of
from calib.walk.policy import FixedPolicy
from calib.walk.step_result import StepResult, fit_result
from engines.apps.compare.compare_result import CompareResult, PrecisionFigures, StepFigures
from engines.apps.evaluate.evaluation_result import EvaluationResult, Figure
from engines.apps.evaluate.metrics.confidence import Summary
from engines.apps.pictures.images import is_drawable, save_png
from engines.bundle.bundle import Bundle
from engines.bundle.contract import sealed
from engines.bundle.manifest import FileRecord
from engines.host.files import sha256
from engines.networks.engine_bank import EngineBank
from engines.samplers import SamplerTable
from ptqd_export.records.statistics_file import statistics, step_record
from ptqd_export.report.chain_steps import sampler_table
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page
from ptqd_export.report.pictures import PICTURES, draw, sheet_of
from ptqd_export.report.write_report import REPORT

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

CHOSEN = ("w4a8", "w4a8", "w8a8", "fp32")
NOISE = {"fp32": 0.0, "w4a8": 0.2, "w8a8": 0.01}
LAYERS = (
    ("conv_in", "Conv", "boundary", 8, None, "first or last layer"),
    ("time_embedding", "Gemm", "embedding", 8, None, "embedding branch"),
    ("mid.conv1", "Conv", "inner", 4, 8, None),
    ("mid.conv2", "Conv", "inner", None, None, "kept in float by the plan"),
    ("mid.conv10", "Conv", "inner", 4, 8, None),
)

VOID = frozenset({"meta", "link", "img", "br", "input", "hr", "wbr"})


@dataclass
class Element:
    """One element of a page."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> list[Element]:
        """Return all descendants with this tag, in document order."""
        return [found for child in self.children for found in ([child] if child.tag == tag else []) + child.all(tag)]

    @property
    def whole_text(self) -> str:
        return self.text + "".join(child.whole_text for child in self.children)


class Page(HTMLParser):
    """A page, parsed into a tree. Every end tag must match the last open start tag; only drawings use self-closing tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("page", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], f"not closed: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(self._open[-1].children[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"duplicate attribute: {tag} {attrs}"
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data

    def table(self, caption: str) -> list[list[str]]:
        """Return the heading and rows of the table whose caption starts with `caption`."""
        (found,) = (table for table in self.root.all("table") if table.all("caption")[0].whole_text.startswith(caption))
        return [[cell.whole_text for cell in row.children] for row in found.all("tr")]


@dataclass(frozen=True)
class Reported:
    """A bundle on disk with the portable report and everything that the report is made from."""

    folder: Path

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.folder)

    @property
    def page(self) -> str:
        return (self.folder / REPORT).read_text("ascii")

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text())
        return content

    def statistics(self, precision: str) -> dict[str, Any]:
        return self.json(f"statistics/onnxruntime/{precision}.json")

    def write(self, name: str, content: str) -> None:
        """Write a file and record it in the manifest."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(content)
        self.register(name)

    def register(self, name: str) -> None:
        path, manifest = self.folder / name, self.json("manifest.json")
        manifest["files"][name] = FileRecord(sha256=sha256(path), bytes=path.stat().st_size).model_dump()
        (self.folder / "manifest.json").write_text(json.dumps(sealed(manifest)))

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file and update its record in the manifest."""
        content = self.json(name)
        change(content)
        if name == "manifest.json":
            (self.folder / name).write_text(json.dumps(sealed(content)))
        else:
            self.write(name, json.dumps(content))


@pytest.fixture(scope="session")
def reported(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A class-conditional, guided bundle with grayscale samples. Tests must not modify it."""
    return _reported(tiny.folder, tmp_path_factory.mktemp("reported") / "bundle")


@pytest.fixture
def own_reported(reported: Reported, tmp_path: Path) -> Reported:
    """A copy of `reported` that a test may modify."""
    return Reported(Path(shutil.copytree(reported.folder, tmp_path / "bundle")))


@pytest.fixture
def reported_latent(tiny_latent: TinyBundle, tmp_path: Path) -> Reported:
    """A bundle with samples of four channels, which cannot be drawn as pictures."""
    return _reported(tiny_latent.folder, tmp_path / "latent-reported")


def _reported(tiny: Path, folder: Path) -> Reported:
    """Copy a tiny bundle and add a schedule and statistics fitted to random moments, a plan, pictures and a report."""
    reported = Reported(Path(shutil.copytree(tiny, folder)))
    before = reported.bundle
    was, shape = before.schedule(), before.manifest.model.sample_shape
    table = sampler_table(before, was)
    results = [_result(table, i, shape[0], was.sampler.guidance) for i in range(table.steps)]
    schedule = schedule_of(was.sampler, record_of("joint", "schedule", BOTH_PARTS), "fixed", table, results)
    reported.write("plan.json", json.dumps({"model": {"path": "models/tiny"}}))
    reported.write("schedules/default.json", schedule.model_dump_json())
    keys = ("name", "op", "role", "weight_bits", "activation_bits", "reason")
    layers = [dict(zip(keys, layer, strict=True)) for layer in LAYERS]
    for name in ("w4a8", "w8a8"):
        records = [step_record(result, name, was.sampler.guidance) for result in results]
        reported.write(f"statistics/onnxruntime/{name}.json", json.dumps(statistics(name, "onnxruntime", 1.5, records, layers)))
    reported.edit("manifest.json", lambda manifest: manifest.update(versions={"ptqd-export": "0.1.0", "numpy": "2.4.6"}))
    if is_drawable(shape):
        bank = EngineBank(reported.bundle, was.sampler.guidance, batch=8, threads=1)
        (folder / PICTURES).parent.mkdir()
        save_png(sheet_of(draw(schedule, bank, "fp32", shape, 3)), folder / PICTURES)
        reported.register(PICTURES)
    reported.write(REPORT, report_page(reported.bundle, Evidence()))
    return reported


def _result(table: SamplerTable, i: int, channels: int, guidance: float) -> StepResult:
    """Fit a step to the moments of random states, outputs and noise."""
    rng, folds = np.random.default_rng(i), np.arange(16) % 4
    x, cond, uncond, *noise = rng.standard_normal((5, 16, channels, 5, 5))
    moments = {
        name: Moments.of(GUIDED, np.stack([x, cond, uncond, *(size * (each - 0.3 * cond + 0.1) for each in noise)]), folds)
        for name, size in NOISE.items()
    }
    return fit_result(i, table.step(i), moments, guidance=guidance, correction=CorrectionChoice(), policy=FixedPolicy(CHOSEN))


@pytest.fixture(scope="session")
def parse_page() -> Callable[[str], Page]:
    return Page


@pytest.fixture
def evaluation_file(tmp_path: Path) -> Path:
    """File with an evaluation of a reported bundle."""
    figures = {
        "frechet_distance": Figure(_summary(4.5), _summary(6.25), _summary(1.75)),
        "pooled_psnr": Figure(None, _summary(31.5), None),
    }
    result = EvaluationResult(
        schedule="default", full_precision="fp32", precision="auto", precision_steps={"w4a8": 4}, correction="on", guidance=1.5, num=200,
        seeds=(3,), classes="all", reference_count=1797, extractor="00" * 32, feature_dimension=64, figures=figures,
        unavailable={"inception_score": "the extractor has no output called logits"}, warnings=("few <samples>",),
    )  # fmt: skip
    return _write(tmp_path / "evaluation.json", result)


@pytest.fixture
def comparison_file(tmp_path: Path) -> Path:
    """File with a comparison of a reported bundle; its second step is exact."""
    steps = (
        StepFigures(0, 750.0, True, 30.25, 0.999, 41.5, 0.125, 32.75),
        StepFigures(1, 500.0, False, None, 1.0, None, 0.0, None),
    )
    result = CompareResult("default", "fp32", 1.5, 16, 0, {"w4a8": PrecisionFigures.of("w4a8 on onnxruntime", steps)})
    return _write(tmp_path / "comparison.json", result)


def _summary(mean: float) -> Summary:
    return Summary(mean, None, (mean - 0.5, mean + 0.5), (mean,))


def _write(path: Path, result: Any) -> Path:
    path.write_text(json.dumps(asdict(result)))
    return path
