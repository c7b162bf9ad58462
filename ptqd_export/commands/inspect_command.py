"""`ptqd-export inspect`: prints what a bundle contains. It runs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from engines.api.layer_info import ActivationScale, LayerBits, LayerInfo, layers_of
from engines.api.precision_info import PrecisionInfo, precisions_of
from engines.api.schedule_info import ScheduleInfo, schedules_of
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize, sizes_in_words
from engines.bundle.manifest import Manifest, ModelRecord, TargetRecord
from ptqd_export.measuring.measured_with import named
from ptqd_export.records.attention_record import AttentionRecord
from ptqd_export.records.stored_attention import attention_of

WIDTH = 80
"""Columns of a table that is not written to a terminal."""

ROW = "{:<7}{:<8}{:<7}{:<20}{:<9}{:<9}{:<10}"
HEADER = ROW.format("op", "weight", "input", "weight scales", "in", "out", "Mbit ops") + "note"


@dataclass(frozen=True)
class Inspection:
    """What a bundle contains."""

    folder: Path
    manifest: Manifest
    schedules: Mapping[str, ScheduleInfo]
    precisions: Mapping[str, PrecisionInfo]
    layers: tuple[LayerInfo, ...]
    attention: Mapping[str, Sequence[AttentionRecord]]

    def json(self) -> str:
        """Return everything as one JSON document."""
        manifest = self.manifest.model_dump(mode="json", exclude={"files", "precisions", "sizes"})
        contents = {
            "sizes": [one.image_size for one in self.manifest.models],
            "schedules": {name: asdict(schedule) for name, schedule in self.schedules.items()},
            "precisions": {name: asdict(precision) for name, precision in self.precisions.items()},
            "layers": [asdict(layer) for layer in self.layers],
            "attention": {name: [one.model_dump() for one in records] for name, records in self.attention.items()},
            "files": {name: record.bytes for name, record in self.manifest.files.items()},
        }
        return json.dumps({"bundle": str(self.folder), **manifest, **contents}, indent=1)


def inspect_bundle(folder: Path) -> Inspection:
    """Check all files of a bundle, and read what it contains.

    Raises:
        UsageError: the folder contains no bundle.
        BundleError: a file of the bundle is missing or damaged.
    """
    bundle = Bundle.open(folder)
    bundle.check_files()
    return Inspection(folder, bundle.manifest, schedules_of(bundle), precisions_of(bundle), layers_of(bundle), attention_of(bundle))


def print_inspection(found: Inspection) -> None:
    """Print the model, the schedules, the precisions, and the layers at every precision."""
    console = _console()
    for table in (_model(found), schedules_table(found.schedules.values()), _precisions(found.precisions.values())):
        console.print(table, highlight=False)
    for precision in found.precisions:
        layers = [(layer, layer.precisions[precision]) for layer in found.layers if precision in layer.precisions]
        if layers:
            _print_layers(console, precision, layers)
        if found.attention.get(precision):
            _print_attention(console, precision, found.attention[precision])


def print_schedules(folder: Path, size: ImageSize | None = None) -> None:
    """Print a bundle's schedules and their settings; those of a size, of the first by default."""
    _console().print(schedules_table(schedules_of(Bundle.open(folder, size)).values()), highlight=False)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else WIDTH)


def _print_layers(console: Console, precision: str, layers: Sequence[tuple[LayerInfo, LayerBits]]) -> None:
    """Print two lines per layer, because names are long, and below all of them the reasons for other bits as notes."""
    reasons = list(dict.fromkeys(bits.reason for _, bits in layers if bits.reason is not None))
    lines = [f"Layers at {precision}: bits, smallest and largest scale of the weight, scales of input and output", f"    {HEADER}"]
    for layer, bits in layers:
        notes = [*bits.techniques, *([] if bits.reason is None else [f"[{reasons.index(bits.reason) + 1}]"])]
        lines += [layer.name, f"    {_figures(layer, bits)}{', '.join(notes)}"]
    lines += [f"[{number}] {reason}" for number, reason in enumerate(reasons, start=1)]
    console.print("\n".join(lines), "", sep="\n", highlight=False, markup=False)


def _print_attention(console: Console, precision: str, attention: Sequence[AttentionRecord]) -> None:
    """Print what the products of attention compute with, and why some stay in float."""
    lines = [f"Attention at {precision}: products; scales of query, key, value and softmax in the noisiest steps; Mbit ops"]
    for one in attention:
        scales = " ".join(f"{scale:.2g}" for scale in one.scales[0].model_dump().values()) if one.scales else ""
        lines += [one.name, f"    {one.form:<7}{scales:<40}{one.bit_operations / 1e6:,.1f}{f'  {one.reason}' if one.reason else ''}"]
    console.print("\n".join(lines), "", sep="\n", highlight=False, markup=False)


def _figures(layer: LayerInfo, bits: LayerBits) -> str:
    weight = "" if bits.weight is None else f"{bits.weight.smallest:.1e} to {bits.weight.largest:.1e}"
    cost = "" if bits.bit_operations is None else f"{bits.bit_operations / 1e6:,.1f}"
    cells = (layer.op, _bits(bits.weight_bits), _bits(bits.activation_bits), weight, _scale(bits.input), _scale(bits.output), cost)
    return ROW.format(*cells)


def _model(found: Inspection) -> Table:
    manifest, model = found.manifest, found.manifest.model
    size = sum(record.bytes for record in manifest.files.values())
    rows = {
        "model": f"{model.family}, {model.parameters:,} parameters, predicts {manifest.parameterization}",
        "state": _shape(model.sample_shape),
        "image": _image(model),
        **({"sizes": sizes_in_words([one.image_size for one in manifest.models])} if manifest.sizes else {}),
        "encoder": "none" if model.encoder is None else model.encoder.file,
        **({} if model.preview is None else {"preview": f"{model.preview.file}, {_shape(model.preview.image_shape)}"}),
        "conditioning": _conditioning(manifest),
        "control": _control(manifest),
        "target": _target(manifest.target),
        "measured on": named(manifest.measured_on),
        "size": f"{size / 1e6:.2f} MB in {len(manifest.files)} files",
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()) or "unknown versions",
    }
    table = Table(title=str(found.folder), title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _image(model: ModelRecord) -> str:
    if model.decoder is None:
        return "the state"
    tiles = "" if model.tile_size is None else f" in tiles of {_shape(model.tile_size)}"
    return f"{_shape(model.image_shape)}, decoded{tiles} in {model.decoder.computes_in}"


def _target(target: TargetRecord) -> str:
    device = f" on {target.provider}" if target.name == "onnxruntime" else ""
    return f"{target.name}{device}; layers in float are {target.high_precision}"


def _conditioning(manifest: Manifest) -> str:
    record = manifest.model.conditioning
    if manifest.model.text is not None:
        return "prompts"
    if record is None:
        return "none"
    return f"{record.rows} {'classes' if record.file is None else 'rows of embeddings'}"


def _control(manifest: Manifest) -> str:
    record = manifest.model.control
    if record is None:
        return "none"
    network = "calibrated with zeros" if record.network is None else record.network.file
    return f"{len(record.inputs)} residuals, {network}"


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def schedules_table(schedules: Iterable[ScheduleInfo]) -> Table:
    table = _table("Schedules", "schedule", "sampler", "guidance", "correction", "policy", "steps")
    for one in schedules:
        sampler = f"{one.sampler}, eta {one.eta:g}"
        correction = one.mode if one.mode == "none" else f"{one.mode}: {', '.join(one.parts)}"
        steps = ", ".join(f"{count} {precision}" for precision, count in one.precision_steps.items())
        chosen = "; ".join(f"{name}: {label}" for name, label in one.chosen.items())
        table.add_row(one.name, sampler, f"{one.guidance:g}", chosen or f"{correction}; variance: {one.variance}", one.policy, steps)
    return table


def _precisions(precisions: Iterable[PrecisionInfo]) -> Table:
    table = _table("Precisions", "precision", "weight", "input", "groups", "size", "bit ops saved, layers", "bit ops saved, all")
    for one in precisions:
        saved = (f"{one.bit_operations_saved:.1f}x", f"{one.bit_operations_saved_all:.1f}x")
        groups = str(1 + len(one.groups))
        table.add_row(one.name, _bits(one.weight_bits), _bits(one.activation_bits), groups, f"{one.bytes / 1e6:.2f} MB", *saved)
        for cut, at_cut in one.cuts.items():
            table.add_row(f"+{cut}", "", "", "", "", "", f"{at_cut:.1f}x")
    return table


def _bits(bits: int | None) -> str:
    return "float" if bits is None else f"{bits} bit"


def _scale(scale: ActivationScale | None) -> str:
    return "" if scale is None else f"{scale.scale:.2g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
