"""Puts the stages' results together as a new bundle, beside the existing one, and then replaces the existing one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from calib.quantizers.rules.precision import FLOAT_WIDTHS, Precision
from engines.bundle.bundle import Bundle, size_folder
from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord
from engines.bundle.image_size import size_name
from engines.bundle.manifest import (
    FileRecord,
    GroupRecord,
    Manifest,
    ModelRecord,
    NetworkGraphs,
    PrecisionRecord,
    ProfileRecord,
    SizeRecord,
    TargetRecord,
    write_manifest,
)
from engines.chain.features import precision_and_cut
from engines.chain.schedule import Schedule
from engines.host.room import check_room
from engines.networks.conditioning import NULL_PREFIX, Conditioning
from ptqd_export.models.text.prompts import TEXT
from ptqd_export.records.bundle_lock import UNFINISHED
from ptqd_export.records.statistics_file import WALK, statistics
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page
from ptqd_export.report.pictures import PICTURES
from ptqd_export.report.write_report import REPORT
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, schedule_path, stored_cuts
from ptqd_export.stages.finish.bundle_writer import BundleWriter
from ptqd_export.stages.finish.network_files import GraphPlace, write_network
from ptqd_export.stages.finish.pieces import check_pieces
from ptqd_export.stages.finish.put_in_place import install
from ptqd_export.stages.finish.sample_pictures import SHEET
from ptqd_export.stages.fit.budget import FRONTIER, Chosen
from ptqd_export.stages.network.controlling import CONTROL, CONTROL_IMAGES, control_arrays, control_record
from ptqd_export.stages.network.decoder_files import DECODER, PREVIEW, decoder_record
from ptqd_export.stages.network.encoding import ENCODER, encoder_record
from ptqd_export.stages.network.preparation import PREPARATION
from ptqd_export.stages.network.text import text_record

PORTABLE = (
    "graphs/**/*", "schedules/**/*", "statistics/**/*", "conditioning/**/*", "sizes/**/*", "report/*", "decoder.*", "encoder.*",
    "preview.*", f"{CONTROL}*", f"{TEXT}/*",
)  # fmt: skip
CONDITIONS = "conditioning/default.npz"
FirstStage = TypeVar("FirstStage", DecoderRecord | None, EncoderRecord | None)
PACKAGES = ("ptqd-export", "torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "numpy")


@dataclass(frozen=True)
class Parts:
    """Folders of the stages that a bundle is put together from.

    Attributes:
        graphs: folders of the graphs, by precision.
        prepared: folder of the stage that prepared the network, or of the stage that traced it.
        decoder: folder of the decoder's graph, or None.
        encoder: folder of the encoder's graph, or None.
        preview: folder of the graph of the decoder of previews, or None.
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
    preview: Path | None
    control: Path | None
    text: Path | None
    walked: Path
    chosen: Chosen | None
    pictures: Path | None
    versions: Mapping[str, Mapping[str, str]]


def assemble(context: BuildContext, output: Path, parts: Parts, further: Sequence[tuple[BuildContext, Parts]] = ()) -> None:
    """Write the portable part of the bundle, replacing that of an earlier build.

    Args:
        context: context of the build.
        output: folder of the bundle.
        parts: folders of the stages.
        further: contexts and folders at further sizes.

    Raises:
        NoRoomError: the disk is full. The earlier bundle is unchanged.
    """
    made = output / UNFINISHED
    check_room(made, _bytes_needed(parts), "the bundle")
    try:
        _put_together(context, made, parts, further)
        install(made, output, PORTABLE)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _bytes_needed(parts: Parts) -> int:
    """Return the bytes of the graphs and statistics, which make up most of a bundle. Further sizes add little."""
    folders = [
        *parts.graphs.values(),
        parts.walked,
        *(folder for folder in (parts.decoder, parts.encoder, parts.preview, parts.control, parts.text) if folder is not None),
    ]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _put_together(context: BuildContext, folder: Path, parts: Parts, further: Sequence[tuple[BuildContext, Parts]]) -> None:
    writer = BundleWriter(folder)
    writer.text("plan.json", context.plan.resolved_json())
    if parts.control is not None:
        writer.graphs([CONTROL], [parts.control / CONTROL], None)
    if (images := control_arrays(context.model)) is not None:
        writer.arrays(CONTROL_IMAGES, images)
    if parts.text is not None:
        for file in sorted((parts.text / TEXT).iterdir()):
            writer.copy(f"{TEXT}/{file.name}", file)
    if parts.pictures is not None:
        writer.copy(PICTURES, parts.pictures / SHEET)
    first = _write_size(context, parts, GraphPlace(writer, None, shares=bool(further)), CONDITIONS)
    sizes = [_write_further(context, at_size, own, writer) for at_size, own in further]
    manifest = _manifest(context, first, sizes, writer.files)
    for at_size, own in zip(Bundle(folder, manifest).at_sizes, (context, *(one for one, _ in further)), strict=True):
        check_pieces(at_size, own.samples.noise)
    writer.text(REPORT, report_page(Bundle(folder, manifest), Evidence()))
    manifest = manifest.model_copy(update={"files": writer.files})
    write_manifest(folder, manifest)


def _write_further(context: BuildContext, at_size: BuildContext, parts: Parts, writer: BundleWriter) -> SizeRecord:
    """Write what a further size has of its own. Conditions are those of the first size, unless some follow the size."""
    assert at_size.size is not None
    one, other = (found.model.conditioning for found in (context, at_size))
    same = one is None or other is None or all(other.tables[name] is table for name, table in one.tables.items())
    place = GraphPlace(writer, size_name(at_size.size), shares=True)
    return _write_size(at_size, parts, place, CONDITIONS if same else f"{size_folder(at_size.size)}{CONDITIONS}")


def _write_size(context: BuildContext, parts: Parts, place: GraphPlace, conditions: str) -> SizeRecord:
    """Write graphs, schedule, statistics and conditions at a size.

    Args:
        context: context of the build at the size.
        parts: folders of the stages.
        place: where the graphs lie.
        conditions: name of the file of conditions, if there is one.
    """
    writer, home = place.writer, "" if place.size is None or context.size is None else size_folder(context.size)
    writer.text(f"{home}schedules/default.json", schedule_path(parts.walked).read_text())
    networks = {name: write_network(context, place, parts.graphs, name) for name in parts.graphs}
    for folder_of, graph in ((parts.decoder, DECODER), (parts.encoder, ENCODER), (parts.preview, PREVIEW)):
        if folder_of is not None:
            writer.graphs([place.name(graph)], [folder_of / graph], place.shared(graph))
    records = {name: json.loads((folder / "precision.json").read_text()) for name, folder in parts.graphs.items() if name != FULL_PRECISION}
    _write_statistics(context, parts, records, writer, home)
    model = _model_record(context, parts, place, _conditions_file(context, writer, conditions))
    return SizeRecord(model=model, precisions=_precisions(parts, records, networks, place))


def _write_statistics(context: BuildContext, parts: Parts, records: Mapping[str, Any], writer: BundleWriter, home: str) -> None:
    """Write the statistics of each precision, the preparation of the network, and the frontier of a budget, in the folder `home`."""
    placement = context.placement.name
    folder = f"{home}statistics/{placement}"
    for name, record in records.items():
        steps = json.loads((parts.walked / f"{name}.json").read_text())
        content = statistics(name, placement, context.guidance, steps, record["layers"], record.get("attention"))
        writer.text(f"{folder}/{name}.json", json.dumps(content, allow_nan=False) + "\n")
    for name in Schedule.model_validate_json(schedule_path(parts.walked).read_text()).networks_at_cut:
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


def _conditions_file(context: BuildContext, writer: BundleWriter, name: str) -> str | None:
    """Write the file with the embeddings of the conditions, unless it is there, and return its name, or None for class labels, which need
    no file.
    """
    conditioning: Conditioning | None = context.model.conditioning
    if conditioning is None or (context.plan.model.conditions is None and context.plan.model.prompts is None):
        return None
    if name not in writer.files:
        null = {f"{NULL_PREFIX}{key}": value for key, value in (conditioning.null or {}).items()}
        writer.arrays(name, {**conditioning.tables, **null})
    return name


def _manifest(context: BuildContext, first: SizeRecord, further: Sequence[SizeRecord], files: dict[str, FileRecord]) -> Manifest:
    return Manifest(
        model=first.model,
        parameterization=context.noise_schedule.prediction_type,
        target=target_record(context),
        placement=context.placement.name,
        measured_on=context.measured_with.runtime,
        precisions=first.precisions,
        guidance=context.guidance,
        files=files,
        versions={name: version(name) for name in PACKAGES},
        sizes=tuple(further),
    )


def _model_record(context: BuildContext, parts: Parts, place: GraphPlace, conditions: str | None) -> ModelRecord:
    model, text = context.model, text_record(parts.text)
    if text is not None and model.prompts is not None:
        text = text.model_copy(update={"fixed": dict(model.prompts.fixed), "null_fixed": dict(model.prompts.null_fixed)})
    return ModelRecord(
        family=model.family,
        parameters=model.parameters,
        sample_shape=model.sample_shape,
        conditioning=None if model.conditioning is None else model.conditioning.record(conditions, model.null_class),
        noise_schedule=context.noise_schedule,
        decoder=_placed(decoder_record(parts.decoder), place),
        encoder=_placed(encoder_record(parts.encoder), place),
        preview=_placed(decoder_record(parts.preview), place),
        text=text,
        guidance_patch=model.guidance_patch,
        size=context.size,
        control=control_record(model),
    )


def _placed(record: FirstStage, place: GraphPlace) -> FirstStage:
    """Return the record of a graph where it lies: at a further size it reads the weights of the first."""
    if record is None or place.size is None:
        return record
    return record.model_copy(update={"file": place.name(record.file), "weights": record.file})


def _precisions(
    parts: Parts, records: Mapping[str, Any], networks: Mapping[str, list[NetworkGraphs]], place: GraphPlace
) -> dict[str, PrecisionRecord]:
    """Return the records of the precisions, full precision first."""
    full = {"layers_saved": 1.0, "all_saved": 1.0}
    precisions = {FULL_PRECISION: _precision(32, 32, full, networks[FULL_PRECISION], parts.versions[FULL_PRECISION])}
    for name, record in records.items():
        parsed, width = Precision.parse(name), FLOAT_WIDTHS.get(name)
        bits = (parsed.weight_bits or width, parsed.activation_bits or width)
        precisions[name] = _precision(*bits, record["bit_operations"], networks[name], parts.versions[name])
    if place.size is None:
        return precisions
    folder = PurePosixPath(networks[FULL_PRECISION][0].graph).parent
    return {name: one.model_copy(update={"weights": f"{folder}/{name}.onnx"}) for name, one in precisions.items()}


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
