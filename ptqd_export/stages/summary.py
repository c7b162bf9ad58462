"""Prints the table at the end of a build."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from rich.console import Console

from calib.quantizers.rules.placement import NOISY, WITHOUT_BLOCKS, WITHOUT_BRANCH, WITHOUT_GROUPS
from calib.quantizers.rules.precision import BLOCK_FORMATS
from engines.api.schedule_info import schedules_of
from engines.backends.onnxruntime.onnxruntime_session import saturates
from engines.bundle.bundle import DEFAULT, UNFINISHED_BUILD, Bundle
from engines.bundle.image_size import size_name
from engines.bundle.manifest import ModelRecord
from engines.chain.features import precision_and_cut
from engines.host.machine import machine_name
from engines.terminal.fitting_table import FittingTable, result_console
from engines.terminal.verbosity import is_quiet
from ptqd_export.measuring.measured_with import named
from ptqd_export.plan import PlanFile
from ptqd_export.records.kernel_advice import kernel_advice
from ptqd_export.records.times_file import read_times, times_file, without_gain
from ptqd_export.report.write_report import LOCAL_REPORT
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.stage_cache import finished_stage

COLUMNS = (
    "precision", "size", "bit ops saved (layers / all)", "time per step", "noise SNR", "R2", "corrected SNR", "fast mode", "steps",
)  # fmt: skip

DROWNED_DB = 6.0
"""SNR below which the summary says what to do: half of the output's amplitude is noise."""


def _steps(count: int, reusing: int) -> str:
    return f"{count}, {reusing} of them reuse" if reusing else str(count)


def print_summary(plan_file: PlanFile, seconds: float) -> None:
    """Print the size, bit operations, measured time and noise of every precision of a bundle that has just been built in `seconds`."""
    context, output = BuildContext(plan_file), plan_file.output_path
    bundle, graphs = Bundle.open(output), _stages(context, output)
    times = read_times(times_file(output)).milliseconds_a_step if times_file(output).exists() else None
    shown = min(str(output), os.path.relpath(output), key=len)
    title = f"{shown}: {context.plan.sampler.name}, {len(bundle.schedule().steps)} steps, {context.plan.correction.mode} correction"
    table = FittingTable(title, COLUMNS)
    schedule = bundle.schedule()
    chosen, reusing = Counter(step.precision for step in schedule.steps), Counter(step.precision for step in schedule.steps if step.reuse)
    for name in [FULL_PRECISION, *(precision.name for precision in reversed(context.engine_precisions))]:
        table.add_row(name, *_cells(bundle, name, graphs, times), _steps(chosen[name], reusing[name]))
    console = result_console()
    remarks = Console(quiet=True) if is_quiet() else console
    remarks.print(table)
    time = f"batch {context.plan.target.benchmark_batch}, median on this machine"
    if times is None:
        time = f"not measured: {named(bundle.manifest.measured_on)} ran the graphs in place of {context.target.name}"
    following = f"ptqd-run sample {shown} --num 64 --seed 1 --output out"
    if context.target.stand_in:
        following = f"ptqd-export engines {shown}"
    remarks.print(
        f"time per step: {time}; noise SNR, R2, corrected SNR: mean over steps; "
        "fast mode: change of the SNR due to the runtime's fused kernels, or float16\n"
        f"statistics: measured on {named(bundle.manifest.measured_on)}\n"
        f"{_control(bundle)}"
        f"{_beside(bundle.manifest.model)}"
        f"{_chosen(bundle)}"
        f"{''.join(_learned(name, graphs[name]) for name in graphs)}"
        f"{''.join(_grouped(name, graphs[name]) for name in graphs)}"
        f"{''.join(_branched(name, graphs[name]) for name in graphs)}"
        f"{''.join(_attention(name, graphs[name]) for name in graphs)}"
        f"{''.join(_noisy(name, graphs[name], context.plan.quantization.float_share) for name in graphs)}"
        f"{_without_gain(times or {})}"
        f"{_saturation(context)}"
        f"report: {shown}/local/{machine_name()}/{LOCAL_REPORT}",
        highlight=False,
    )
    console.print(
        f"built in {seconds:.0f} s; next: {following}",
        highlight=False,
    )


def _stages(context: BuildContext, output: Path) -> dict[str, Path]:
    """Return the folders of the stages that made the graphs, by precision."""
    kinds = {precision.name: "convert" if precision.weight_bits is None else "quantize" for precision in context.engine_precisions}
    made = {name: finished_stage(output / UNFINISHED_BUILD, f"{kind}-{name}") for name, kind in kinds.items()}
    return {FULL_PRECISION: finished_stage(output / UNFINISHED_BUILD, "trace"), **made}


def _without_gain(times: Mapping[str, float]) -> str:
    """Return lines on the cuts where reused features save no time on this machine, or an empty string."""
    return "".join(
        f"{name}: reuse saves too little here, {times[name]:.1f} ms a step instead of {times[precision_and_cut(name)[0]]:.1f} ms; "
        "a budget leaves it out\n"
        for name in without_gain(times)
    )


def _saturation(context: BuildContext) -> str:
    """Return a line that recommends 7-bit weights if they would be faster on this processor, otherwise an empty string."""
    target, names = context.plan.target, {precision.name for precision in context.engine_precisions}
    advice = kernel_advice(target.name, target.provider, names, sums_in_16_bits=saturates({}))
    return "" if advice is None else f"{advice}\n"


def _control(bundle: Bundle) -> str:
    """Return a line on the residuals that the ranges were measured with, or an empty string if the network takes none."""
    record = bundle.manifest.model.control
    if record is None:
        return ""
    if record.network is None:
        return (
            "control: calibrated with residuals of zeros; those of a control network may exceed the ranges: name it as model.control.path\n"
        )
    return f"control: calibrated with the residuals of {record.network.file}\n"


def _beside(model: ModelRecord) -> str:
    """Return lines on text encoders with weights in 8 bits, and on a decoder that takes tiles; an empty string if there are none."""
    encoders = () if model.text is None else model.text.encoders
    lines = [
        f"{one.graph}: weights in 8 bits; a cosine of {one.least_cosine:.5f} or more to its outputs in float, for the plan's prompts\n"
        for one in encoders
        if one.least_cosine is not None
    ]
    if model.tile_size is not None:
        size = size_name(model.tile_size)
        lines.append(f"decoder: images of {size_name(model.image_size)} in tiles of {size}; model.decoder_tile null decodes them whole\n")
    return "".join(lines)


def _chosen(bundle: Bundle) -> str:
    """Return a line on what `auto` chose for each precision, or an empty string if the plan named the correction."""
    chosen = schedules_of(bundle)[DEFAULT].chosen
    return f"corrections: {', '.join(f'{name} {label}' for name, label in chosen.items())}\n" if chosen else ""


def _learned(name: str, folder: Path) -> str:
    """Return a line on the cost of learning a precision's weights, or an empty string if nothing was learned."""
    if name == FULL_PRECISION or (took := json.loads((folder / "precision.json").read_text())["reconstruction"]) is None:
        return ""
    kept = ", ".join(f"{what} kept in {sum(what in one['kept'] for one in took['blocks'])}" for what in took["learns"])
    cost = f"{took['minutes']:.1f} minutes, {took['peak_memory_gib']:.1f} GiB at most"
    return f"{name}: learned by {took['unit']} in {cost}; of {len(took['blocks'])}: {kept}\n"


def _grouped(name: str, folder: Path) -> str:
    """Return lines on the layers whose weights have scales of groups or blocks, or an empty string if neither was asked for."""
    layers = [] if name == FULL_PRECISION else json.loads((folder / "precision.json").read_text())["layers"]
    sizes = [(layer["form"] in BLOCK_FORMATS, layer["weight"]["group"]) for layer in layers if "weight" in layer]
    grouped, blocks = ([size for is_block, size in sizes if size is not None and is_block == wanted] for wanted in (False, True))
    without = {reason: sum(reason in (layer["reason"] or "") for layer in layers) for reason in (WITHOUT_GROUPS, WITHOUT_BLOCKS)}
    return "".join(
        f"{name}: {what} of {found[0] if found else 'no'} input channels in {len(found)} layers, {reason} in {without[reason]}; "
        "`ptqd-export inspect` says why\n"
        for what, found, reason in (("groups", grouped, WITHOUT_GROUPS), ("blocks", blocks, WITHOUT_BLOCKS))
        if found or without[reason]
    )


def _branched(name: str, folder: Path) -> str:
    """Return a line on the layers with low-rank branches, or an empty string if the plan asked for none."""
    layers = [] if name == FULL_PRECISION else json.loads((folder / "precision.json").read_text())["layers"]
    ranks = [layer["low_rank"] for layer in layers if layer.get("low_rank") is not None]
    without = sum(WITHOUT_BRANCH in (layer["reason"] or "") for layer in layers)
    if not ranks and not without:
        return ""
    what = f"branches of rank {ranks[0]}" if ranks else "low-rank branches"
    return f"{name}: {what} in {len(ranks)} layers, {WITHOUT_BRANCH} in {without}; `ptqd-export inspect` says why\n"


def _attention(name: str, folder: Path) -> str:
    """Return a line on the attention with 8-bit products, or an empty string if the plan keeps attention in float."""
    record = {} if name == FULL_PRECISION else json.loads((folder / "precision.json").read_text())
    if not (attention := record.get("attention")):
        return ""
    quantized = [one["form"] for one in attention if one["form"] != "float"]
    kept = "" if len(quantized) == len(attention) else "; `ptqd-export inspect` says why not in all"
    return f"{name}: {quantized[0] if quantized else '8-bit'} products in {len(quantized)} of {len(attention)} attention layers{kept}\n"


def _noisy(name: str, folder: Path, share: float) -> str:
    """Return a line on the layers that compute in float because of their noise, or on a precision that drowns in noise without any."""
    if name == FULL_PRECISION:
        return ""
    record = json.loads((folder / "precision.json").read_text())
    noise = record["verification"]["noise"]
    chosen = sum(NOISY in (layer["reason"] or "") for layer in record["layers"])
    if chosen:
        return f"{name}: {chosen} layers compute in float for their noise; `ptqd-export inspect` names them\n"
    if share == 0 and noise < DROWNED_DB:
        more = "`quantization.float_share`, such as 0.1, computes the noisiest layers in float"
        return f"{name}: the noise is only {noise:.1f} dB below the output; {more}\n"
    return ""


def _cells(bundle: Bundle, name: str, graphs: Mapping[str, Path], times: Mapping[str, float] | None) -> list[str]:
    record = bundle.manifest.precisions[name]
    sizes = {precision: bundle.manifest.bytes_of([precision]) for precision in (name, FULL_PRECISION)}
    saved = f"{record.bit_operations_saved:.1f}x / {record.bit_operations_saved_all:.1f}x"
    size = f"{sizes[name] / 1e6:.2f} MB ({sizes[name] / sizes[FULL_PRECISION]:.2f}x)"
    speed = "-" if times is None else f"{times[name]:.1f} ms ({times[FULL_PRECISION] / times[name]:.2f}x)"
    return [size, saved, speed, *_noise(bundle, name, graphs)]


def _noise(bundle: Bundle, name: str, graphs: Mapping[str, Path]) -> list[str]:
    if name == FULL_PRECISION:
        return ["-"] * 4
    steps = json.loads(bundle.path(f"{bundle.statistics_folder}/{name}.json").read_text())["steps"]
    verified = json.loads((graphs[name] / "precision.json").read_text())["verification"]
    return [
        f"{fmean(step['snr_db'] for step in steps):.1f} dB",
        f"{fmean(step['r2'] for step in steps):.3f}",
        f"{fmean(step['corrected_snr_db'] for step in steps):.1f} dB",
        f"{verified['noise'] - verified['exact_noise']:+.2f} dB",
    ]
