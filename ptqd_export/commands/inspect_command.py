"""`ptqd-export inspect`: prints what a bundle contains. It runs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engines.api.layer_info import ActivationScale, LayerBits, LayerInfo, layers_of
from engines.api.precision_info import PrecisionInfo, precisions_of
from engines.api.schedule_info import ScheduleInfo, schedules_of
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Manifest

WIDTH = 80
"""Columns of a table that is not written to a terminal."""


@dataclass(frozen=True)
class Inspection:
    """What a bundle contains."""

    folder: Path
    manifest: Manifest
    schedules: Mapping[str, ScheduleInfo]
    precisions: Mapping[str, PrecisionInfo]
    layers: tuple[LayerInfo, ...]

    def json(self) -> str:
        """Return everything as one JSON document."""
        manifest = self.manifest.model_dump(mode="json", exclude={"files", "precisions"})
        contents = {
            "schedules": {name: asdict(schedule) for name, schedule in self.schedules.items()},
            "precisions": {name: asdict(precision) for name, precision in self.precisions.items()},
            "layers": [asdict(layer) for layer in self.layers],
            "files": {name: record.bytes for name, record in self.manifest.files.items()},
        }
        return json.dumps({"bundle": str(self.folder), **manifest, **contents}, indent=1)


def inspect_bundle(folder: Path) -> Inspection:
    """Read what a bundle contains.

    Raises:
        UsageError: the folder contains no bundle.
        BundleError: a file of the bundle is damaged.
    """
    bundle = Bundle.open(folder)
    return Inspection(folder, bundle.manifest, schedules_of(bundle), precisions_of(bundle), layers_of(bundle))


def print_inspection(found: Inspection) -> None:
    """Print the model, the schedules, the precisions, and the layers at every precision."""
    console = Console(width=None if Console().is_terminal else WIDTH)
    for table in (_model(found), _schedules(found.schedules.values()), _precisions(found.precisions.values())):
        console.print(table, highlight=False)
    for precision in found.precisions:
        layers = [(layer, layer.precisions[precision]) for layer in found.layers if precision in layer.precisions]
        if layers:
            console.print(_layers(precision, layers), highlight=False)


def _model(found: Inspection) -> Table:
    model, target, size = found.manifest.model, found.manifest.target, sum(record.bytes for record in found.manifest.files.values())
    rows = {
        "model": f"{model.family}, {model.parameters:,} parameters, predicts {found.manifest.parameterization}",
        "state": _shape(model.sample_shape),
        "image": _shape(model.image_shape) if model.decoder is not None else "the state",
        "conditioning": _conditioning(found.manifest),
        "target": f"{target.name} on {target.provider}, float part {target.high_precision}"
        if target.name == "onnxruntime"
        else f"{target.name}, float part {target.high_precision}",
        "size": f"{size / 1e6:.2f} MB in {len(found.manifest.files)} files",
        "built with": ", ".join(f"{name} {version}" for name, version in found.manifest.versions.items()) or "unknown versions",
    }
    table = Table(title=str(found.folder), show_header=False, title_justify="left")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _conditioning(manifest: Manifest) -> str:
    record = manifest.model.conditioning
    if manifest.model.text is not None:
        return "prompts"
    if record is None:
        return "none"
    return f"{record.rows} {'classes' if record.file is None else 'rows of embeddings'}"


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _schedules(schedules: Iterable[ScheduleInfo]) -> Table:
    table = _table("Schedules", "schedule", "sampler", "guidance", "correction", "policy", "steps")
    for one in schedules:
        sampler = f"{one.sampler}, eta {one.eta:g}"
        correction = one.mode if one.mode == "none" else f"{one.mode}: {', '.join(one.parts)}"
        steps = ", ".join(f"{count} {precision}" for precision, count in one.precision_steps.items())
        table.add_row(one.name, sampler, f"{one.guidance:g}", f"{correction}; variance: {one.variance}", one.policy, steps)
    return table


def _precisions(precisions: Iterable[PrecisionInfo]) -> Table:
    table = _table("Precisions", "precision", "weights", "activations", "size", "fewer bit operations: layers", "all")
    for one in precisions:
        bits = (f"{one.weight_bits} bits", f"{one.activation_bits} bits")
        table.add_row(
            one.name, *bits, f"{one.bytes / 1e6:.2f} MB", f"{one.bit_operations_saved:.1f}x", f"{one.bit_operations_saved_all:.1f}x"
        )
    return table


def _layers(precision: str, layers: Iterable[tuple[LayerInfo, LayerBits]]) -> Table:
    table = _table(f"Layers at {precision}", "layer", "bits", "weight scales", "input, output scale", "G bit ops", "reason for other bits")
    for layer, bits in layers:
        weight = "" if bits.weight is None else f"{bits.weight.smallest:.2g} to {bits.weight.largest:.2g}"
        scales = ", ".join(_scale(scale) for scale in (bits.input, bits.output) if scale is not None)
        cost = "" if bits.bit_operations is None else f"{bits.bit_operations / 1e9:.3g}"
        table.add_row(f"{layer.name} ({layer.op})", _bits(bits), weight, scales, cost, bits.reason or "")
    return table


def _bits(bits: LayerBits) -> str:
    return "float" if bits.weight_bits is None else f"{bits.weight_bits} / {bits.activation_bits or 'float'}"


def _scale(scale: ActivationScale) -> str:
    return f"{scale.scale:.2g}"


def _table(title: str, *columns: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
