"""Put the stages' results together as a bundle: the manifest comes last, so that a folder without one is no bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calib.precision import FLOAT_WIDTHS, Precision
from engines.bundle import Bundle, FileRecord, Manifest, ModelRecord, PrecisionRecord, ProfileRecord, TargetRecord
from engines.conditioning import NULL_PREFIX, Conditioning
from engines.files import replacing, sha256, write_text
from ptqd_export.build.budget import FRONTIER, Chosen
from ptqd_export.build.context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.build.pictures import SHEET
from ptqd_export.build.statistics import SCHEDULE
from ptqd_export.graph_files import graph_files
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page
from ptqd_export.report.pictures import PICTURES
from ptqd_export.report.write import REPORT
from ptqd_export.statistics_file import statistics

MANIFEST = "manifest.json"
PORTABLE_FOLDERS = ("graphs", "schedules", "statistics", "conditioning", "report")
MEASURED_ON = "onnxruntime"
"""What ran the graphs when statistics were measured; engines of another target are compared on their own machine."""

PACKAGES = ("ptqd-export", "torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "numpy")


def assemble(
    context: BuildContext, output: Path, graphs: Mapping[str, Path], walked: Path, chosen: Chosen | None, pictures: Path | None
) -> None:
    """Write the portable part of the bundle, and remove what an earlier build left of it.

    Args:
        context: of the build.
        output: the bundle's folder.
        graphs: folders of the stages that made the graphs, by precision.
        walked: folder of the walk of the default schedule.
        chosen: what a budget was spent on, or None.
        pictures: folder of the pictures of the report, or None where samples are no pictures.
    """
    (output / MANIFEST).unlink(missing_ok=True)
    writer = _Writer(output)
    writer.text("plan.json", context.plan.resolved_json())
    writer.text("schedules/default.json", (walked / SCHEDULE).read_text())
    placement = context.placement.name
    for name in graphs:
        for file in graph_files(graph_path(graphs, name)):
            writer.copy(f"graphs/{placement}/{file.name}", file)
    records = {name: json.loads((folder / "precision.json").read_text()) for name, folder in graphs.items() if name != FULL_PRECISION}
    for name, record in records.items():
        steps = json.loads((walked / f"{name}.json").read_text())
        content = statistics(name, placement, context.plan.sampler.guidance, steps, record["layers"])
        writer.text(f"statistics/{placement}/{name}.json", json.dumps(content, allow_nan=False) + "\n")
    if chosen is not None:
        writer.text(f"statistics/{placement}/{FRONTIER}", (chosen.folder / FRONTIER).read_text())
    conditions = _conditions_file(context, writer)
    if pictures is not None:
        writer.copy(PICTURES, pictures / SHEET)
    manifest = _manifest(context, records, conditions, writer.files)
    writer.text(REPORT, report_page(Bundle(output, manifest), Evidence()))
    writer.remove_others()
    manifest = manifest.model_copy(update={"files": writer.files})
    write_text(output / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


class _Writer:
    """Writes files whole, and keeps the record of them."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self.files: dict[str, FileRecord] = {}

    def text(self, name: str, content: str) -> None:
        write_text(self._output / name, content)
        self._record(name)

    def copy(self, name: str, source: Path) -> None:
        with replacing(self._output / name) as temporary:
            shutil.copyfile(source, temporary)
        self._record(name)

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        with replacing(self._output / name) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._record(name)

    def remove_others(self) -> None:
        """Remove files of the portable folders that are not part of this bundle."""
        for folder in PORTABLE_FOLDERS:
            for path in (self._output / folder).rglob("*"):
                if path.is_file() and path.relative_to(self._output).as_posix() not in self.files:
                    path.unlink()

    def _record(self, name: str) -> None:
        path = self._output / name
        self.files[name] = FileRecord(sha256=sha256(path), bytes=path.stat().st_size)


def _conditions_file(context: BuildContext, writer: _Writer) -> str | None:
    """Embeddings travel with the bundle; class labels need no file."""
    conditioning: Conditioning | None = context.model.conditioning
    if conditioning is None or context.plan.model.conditions is None:
        return None
    name = "conditioning/default.npz"
    null = {f"{NULL_PREFIX}{key}": value for key, value in (conditioning.null or {}).items()}
    writer.arrays(name, {**conditioning.tables, **null})
    return name


def _manifest(context: BuildContext, records: Mapping[str, Any], conditions: str | None, files: dict[str, FileRecord]) -> Manifest:
    model, placement = context.model, context.placement.name
    conditioning = None if model.conditioning is None else model.conditioning.record(conditions, model.null_class)
    precisions = {FULL_PRECISION: _precision(placement, FULL_PRECISION, 32, 32, {"layers_saved": 1.0, "all_saved": 1.0})}
    for name, record in records.items():
        parsed, width = Precision.parse(name), FLOAT_WIDTHS.get(name)
        bits = (parsed.weight_bits or width, parsed.activation_bits or width)
        precisions[name] = _precision(placement, name, *bits, record["bit_operations"])
    return Manifest(
        model=ModelRecord(
            family=model.family,
            parameters=model.parameters,
            sample_shape=model.sample_shape,
            conditioning=conditioning,
            noise_schedule=context.noise_schedule,
        ),
        parameterization=context.noise_schedule.prediction_type,
        target=_target(context),
        placement=placement,
        measured_on=MEASURED_ON,
        precisions=precisions,
        guidance=context.plan.sampler.guidance,
        files=files,
        versions={name: version(name) for name in PACKAGES},
    )


def _target(context: BuildContext) -> TargetRecord:
    section, branches = context.plan.target, 2 if context.guided else 1
    batch = section.batch
    return TargetRecord(
        name=section.name,
        high_precision=section.high_precision,
        profile=None if batch is None else ProfileRecord(min=batch.min, opt=branches * batch.opt, max=branches * batch.max),
        workspace_gib=section.workspace_gib,
    )


def _precision(
    placement: str, name: str, weight_bits: int | None, activation_bits: int | None, saved: Mapping[str, float]
) -> PrecisionRecord:
    assert weight_bits is not None
    assert activation_bits is not None
    return PrecisionRecord(
        graph=f"graphs/{placement}/{name}.onnx",
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        bit_operations_saved=saved["layers_saved"],
        bit_operations_saved_all=saved["all_saved"],
    )
