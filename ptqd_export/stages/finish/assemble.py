"""Puts the stages' results together as a new bundle, beside the existing one, and then replaces the existing one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from calib.quantizers.rules.precision import FLOAT_WIDTHS, Precision
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import (
    CutRecord,
    FileRecord,
    GroupRecord,
    Manifest,
    ModelRecord,
    NetworkGraphs,
    PiecesRecord,
    PrecisionRecord,
    ProfileRecord,
    TargetRecord,
    write_manifest,
)
from engines.chain.features import precision_and_cut
from engines.errors import PtqdError
from engines.host.files import replacing, sha256, write_text
from engines.host.room import check_room, naming_full_disks
from engines.networks.conditioning import NULL_PREFIX, Conditioning
from engines.untrusted.external_data import graph_files
from ptqd_export.models.text.prompts import TEXT
from ptqd_export.records.bundle_lock import UNFINISHED
from ptqd_export.records.statistics_file import WALK, statistics
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page
from ptqd_export.report.pictures import PICTURES
from ptqd_export.report.write_report import REPORT
from ptqd_export.stages.build_context import CUT_KINDS, FULL_PRECISION, BuildContext, cut_path, network_graphs, schedule_path, stored_cuts
from ptqd_export.stages.finish.pieces import check_pieces, write_in_pieces
from ptqd_export.stages.finish.put_in_place import install
from ptqd_export.stages.finish.sample_pictures import SHEET
from ptqd_export.stages.fit.budget import FRONTIER, Chosen
from ptqd_export.stages.network.controlling import CONTROL, CONTROL_IMAGES, control_arrays, control_record
from ptqd_export.stages.network.decoding import DECODER, decoder_record
from ptqd_export.stages.network.encoding import ENCODER, encoder_record
from ptqd_export.stages.network.preparation import PREPARATION
from ptqd_export.stages.network.text import text_record

PORTABLE = (
    "graphs/**/*",
    "schedules/**/*",
    "statistics/**/*",
    "conditioning/**/*",
    "report/*",
    f"{DECODER}*",
    f"{ENCODER}*",
    f"{CONTROL}*",
    f"{TEXT}/*",
)
PACKAGES = ("ptqd-export", "torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "numpy")


@dataclass(frozen=True)
class Parts:
    """Folders of the stages that a bundle is put together from.

    Attributes:
        graphs: folders of the graphs, by precision.
        prepared: folder of the stage that prepared the network, or of the stage that traced it.
        decoder: folder of the decoder's graph, or None.
        encoder: folder of the encoder's graph, or None.
        control: folder of the control network's graph, or None.
        text: folder of the text encoders' graphs, or None.
        walked: folder of the walk of the default schedule.
        chosen: the chain that a budget bought, or None.
        pictures: folder of the report's pictures, or None if samples are not pictures.
        versions: versions of the libraries that made each graph, by precision and package.
    """

    graphs: Mapping[str, Path]
    prepared: Path
    decoder: Path | None
    encoder: Path | None
    control: Path | None
    text: Path | None
    walked: Path
    chosen: Chosen | None
    pictures: Path | None
    versions: Mapping[str, Mapping[str, str]]


def assemble(context: BuildContext, output: Path, parts: Parts) -> None:
    """Write the portable part of the bundle, replacing that of an earlier build.

    Raises:
        NoRoomError: the disk is full. The earlier bundle is unchanged.
    """
    made = output / UNFINISHED
    check_room(made, _bytes_needed(parts), "the bundle")
    try:
        _put_together(context, made, parts)
        install(made, output, PORTABLE)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _bytes_needed(parts: Parts) -> int:
    """Return the bytes of the graphs and statistics, which make up most of a bundle."""
    folders = [
        *parts.graphs.values(),
        parts.walked,
        *(folder for folder in (parts.decoder, parts.encoder, parts.control, parts.text) if folder is not None),
    ]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _put_together(context: BuildContext, folder: Path, parts: Parts) -> None:
    writer = _BundleWriter(folder)
    writer.text("plan.json", context.plan.resolved_json())
    writer.text("schedules/default.json", schedule_path(parts.walked).read_text())
    networks = {name: _write_network(context, writer, parts.graphs, name) for name in parts.graphs}
    for folder_of, graph in ((parts.decoder, DECODER), (parts.encoder, ENCODER), (parts.control, CONTROL)):
        for file in () if folder_of is None else graph_files(folder_of / graph):
            writer.copy(file.name, file)
    if parts.text is not None:
        for file in sorted((parts.text / TEXT).iterdir()):
            writer.copy(f"{TEXT}/{file.name}", file)
    records = {name: json.loads((folder / "precision.json").read_text()) for name, folder in parts.graphs.items() if name != FULL_PRECISION}
    _write_statistics(context, parts, records, writer)
    conditions = _conditions_file(context, writer)
    if (images := control_arrays(context.model)) is not None:
        writer.arrays(CONTROL_IMAGES, images)
    if parts.pictures is not None:
        writer.copy(PICTURES, parts.pictures / SHEET)
    manifest = _manifest(context, parts, records, networks, conditions, writer.files)
    check_pieces(Bundle(folder, manifest), context.samples.noise)
    writer.text(REPORT, report_page(Bundle(folder, manifest), Evidence()))
    manifest = manifest.model_copy(update={"files": writer.files})
    write_manifest(folder, manifest)


def _write_network(context: BuildContext, writer: _BundleWriter, folders: Mapping[str, Path], precision: str) -> list[NetworkGraphs]:
    """Write the graphs of a precision, with their pieces if the target runs networks in pieces, and with those of their cuts. Returns their
    names by group of steps.
    """
    graphs, cuts = network_graphs(folders, precision), stored_cuts(folders[precision])
    folder = f"graphs/{context.placement.name}"
    pieces: Sequence[PiecesRecord | None] = [None] * len(graphs)
    paths = [path for _, path in graphs]
    if context.in_pieces:
        pieces = writer.pieces(f"{folder}/{paths[0].name}", paths) or pieces
    else:
        for file in sorted({file for path in paths for file in graph_files(path)}):
            writer.copy(f"{folder}/{file.name}", file)
    if cuts:
        _check_same_weights(paths[0].with_name(f"{paths[0].name}.data"), writer.files[f"{folder}/{paths[0].name}.data"])
    for path in paths:
        for file in (cut_path(path, cut, kind) for cut in cuts for kind in CUT_KINDS):
            writer.copy(f"{folder}/{file.name}", file)
    return [
        NetworkGraphs(below, f"{folder}/{path.name}", own, _cut_records(folder, path, cuts))
        for (below, path), own in zip(graphs, pieces, strict=True)
    ]


def _check_same_weights(source: Path, written: FileRecord) -> None:
    """Check that the file of weights is the one whose places the graphs of cuts refer to.

    Raises:
        PtqdError: it is another.
    """
    if sha256(source) != written.sha256:
        raise PtqdError(
            "The graphs of a cut refer to another file of weights.",
            found=f"{source.name} was written in another order",
            expected="the file of the stage that cut the graphs, byte for byte",
            mend="this is a bug in ptqd-export: please report the model",
        )


def _cut_records(folder: str, path: Path, cuts: Mapping[str, Any]) -> dict[str, CutRecord]:
    return {
        cut: CutRecord(
            full=f"{folder}/{cut_path(path, cut, 'full').name}",
            reuse=f"{folder}/{cut_path(path, cut, 'reuse').name}",
            bit_operations_saved_all=found["bit_operations_saved_all"],
        )
        for cut, found in cuts.items()
    }


def _write_statistics(context: BuildContext, parts: Parts, records: Mapping[str, Any], writer: _BundleWriter) -> None:
    """Write the statistics of each precision, the preparation of the network, and the frontier of a budget."""
    placement = context.placement.name
    folder = f"statistics/{placement}"
    for name, record in records.items():
        steps = json.loads((parts.walked / f"{name}.json").read_text())
        content = statistics(name, placement, context.guidance, steps, record["layers"], record.get("attention"))
        writer.text(f"{folder}/{name}.json", json.dumps(content, allow_nan=False) + "\n")
    for name in context.networks_at_cut:
        precision, cut = precision_and_cut(name)
        computed = set(stored_cuts(parts.graphs[precision])[str(cut)]["layers"])
        layers = [layer for layer in records.get(precision, {"layers": []})["layers"] if layer["name"] in computed]
        content = statistics(name, placement, context.guidance, json.loads((parts.walked / f"{name}.json").read_text()), layers)
        writer.text(f"{folder}/{name}.json", json.dumps(content, allow_nan=False) + "\n")
    if (parts.walked / WALK).exists():
        writer.copy(f"{folder}/{WALK}", parts.walked / WALK)
    if (parts.prepared / PREPARATION).exists():
        writer.copy(f"{folder}/{PREPARATION}", parts.prepared / PREPARATION)
    if parts.chosen is not None:
        writer.text(f"{folder}/{FRONTIER}", (parts.chosen.folder / FRONTIER).read_text())


class _BundleWriter:
    """Writes files atomically, and records their hashes and sizes."""

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

    def pieces(self, name: str, sources: Sequence[Path]) -> list[PiecesRecord] | None:
        """Write the graphs of a precision, the first under this name, and, if embeddings can be cut off, their pieces."""
        path = self._output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming_full_disks(path):
            names, folder = write_in_pieces(sources, path), PurePosixPath(name).parent
        for file in sorted(path.parent.glob(f"{path.stem}.*")):
            self._record(f"{folder}/{file.name}")
        if names is None:
            return None
        return [
            PiecesRecord(body=f"{folder}/{one.body}", embeddings={key: f"{folder}/{piece}" for key, piece in one.embeddings.items()})
            for one in names
        ]

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        with replacing(self._output / name) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._record(name)

    def _record(self, name: str) -> None:
        path = self._output / name
        self.files[name] = FileRecord(sha256=sha256(path), bytes=path.stat().st_size)


def _conditions_file(context: BuildContext, writer: _BundleWriter) -> str | None:
    """Write the file with the embeddings of the conditions and return its name, or None for class labels, which need no file."""
    conditioning: Conditioning | None = context.model.conditioning
    if conditioning is None or (context.plan.model.conditions is None and context.plan.model.prompts is None):
        return None
    name = "conditioning/default.npz"
    null = {f"{NULL_PREFIX}{key}": value for key, value in (conditioning.null or {}).items()}
    writer.arrays(name, {**conditioning.tables, **null})
    return name


def _manifest(
    context: BuildContext,
    parts: Parts,
    records: Mapping[str, Any],
    networks: Mapping[str, list[NetworkGraphs]],
    conditions: str | None,
    files: dict[str, FileRecord],
) -> Manifest:
    model, placement = context.model, context.placement.name
    conditioning = None if model.conditioning is None else model.conditioning.record(conditions, model.null_class)
    full = {"layers_saved": 1.0, "all_saved": 1.0}
    precisions = {FULL_PRECISION: _precision(32, 32, full, networks[FULL_PRECISION], parts.versions[FULL_PRECISION])}
    for name, record in records.items():
        parsed, width = Precision.parse(name), FLOAT_WIDTHS.get(name)
        bits = (parsed.weight_bits or width, parsed.activation_bits or width)
        precisions[name] = _precision(*bits, record["bit_operations"], networks[name], parts.versions[name])
    return Manifest(
        model=ModelRecord(
            family=model.family,
            parameters=model.parameters,
            sample_shape=model.sample_shape,
            conditioning=conditioning,
            noise_schedule=context.noise_schedule,
            decoder=decoder_record(parts.decoder),
            encoder=encoder_record(parts.encoder),
            text=text_record(parts.text),
            guidance_patch=model.guidance_patch,
            control=control_record(model),
        ),
        parameterization=context.noise_schedule.prediction_type,
        target=target_record(context),
        placement=placement,
        measured_on=context.measured_with.runtime,
        precisions=precisions,
        guidance=context.guidance,
        files=files,
        versions={name: version(name) for name in PACKAGES},
    )


def target_record(context: BuildContext) -> TargetRecord:
    """Return the manifest's record of the target."""
    section, branches = context.plan.target, 2 if context.guided else 1
    batch = section.batch
    return TargetRecord(
        name=section.name,
        provider=section.provider,
        high_precision=section.high_precision,
        profile=None if batch is None else ProfileRecord(min=batch.min, opt=branches * batch.opt, max=branches * batch.max),
        workspace_gib=section.workspace_gib,
    )


def _precision(
    weight_bits: int | None,
    activation_bits: int | None,
    saved: Mapping[str, float],
    networks: list[NetworkGraphs],
    versions: Mapping[str, str],
) -> PrecisionRecord:
    assert weight_bits is not None
    assert activation_bits is not None
    first, *others = networks
    return PrecisionRecord(
        graph=first.graph,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        bit_operations_saved=saved["layers_saved"],
        bit_operations_saved_all=saved["all_saved"],
        pieces=first.pieces,
        groups=tuple(GroupRecord(below=one.below, graph=one.graph, pieces=one.pieces, cuts=dict(one.cuts)) for one in others),
        cuts=dict(first.cuts),
        versions=dict(versions),
    )
