"""The top of the page: what the bundle is, and its main figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any

from engines.bundle.manifest import saved_all
from ptqd_export.measuring.measured_with import named
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.times_file import MachineTimes
from ptqd_export.report.chain_steps import PrecisionSteps, Series, mean_of
from ptqd_export.report.content import Content

_CORRECTED = {"none": "no correction", "auto": "corrections chosen by held-out chains"}

_SAYS_NOTHING = ("model", "unet", "transformer", "checkpoint")
"""Names of folders that do not tell models apart."""


@dataclass(frozen=True)
class Headline:
    """A figure, its name, and a note on what it covers."""

    name: str
    figure: str
    note: str


def title(content: Content) -> str:
    """Return the model's name: that of its folder, file or factory or, if that says nothing, the name of the plan's output folder."""
    plan: Any = content.bundle.json("plan.json")
    model, output = (plan.get(key) if isinstance(plan, dict) else None for key in ("model", "output"))
    source = (model.get("path") or model.get("factory")) if isinstance(model, dict) else None
    name = PurePosixPath(str(source or "")).name.rpartition(":")[2]
    if name and name not in _SAYS_NOTHING:
        return name
    return PurePosixPath(str(output or "")).name or content.bundle.folder.name


def subtitle(content: Content) -> list[str]:
    """Describe the network and the default chain, in one line each."""
    model, sampler, correction = content.bundle.manifest.model, content.schedule.sampler, content.schedule.correction
    taken = ", ".join(f"{count} {name}" for name, count in content.taken.items())
    corrected = _CORRECTED.get(correction.mode, f"{correction.mode} correction")
    return [
        f"{model.family}, {model.parameters / 1e6:.3g} M parameters, quantized for {content.bundle.manifest.target.name}, "
        f"statistics measured on {named(content.bundle.manifest.measured_on)}",
        f"{sampler.name}, {sampler.steps} steps ({taken}), eta {sampler.eta:g}, guidance {sampler.guidance:g}, "
        f"{corrected}, policy {content.schedule.policy}",
    ]


def headlines(content: Content) -> list[Headline]:
    """Return the default chain's size, bit operations, time on every machine that measured one, and noise."""
    times = [_time(content, measured) for measured in content.evidence.times]
    return [_size(content), _bit_operations(content), *times, _noise(content)]


def _size(content: Content) -> Headline:
    used, full = (content.bundle.manifest.bytes_of(names) for names in (content.taken, [FULL_PRECISION]))
    graphs = "1 graph" if len(content.taken) == 1 else f"{len(content.taken)} graphs"
    return Headline("Size of the chain's engines", f"{used / 1e6:.2f} MB", f"{graphs} on disk; full precision has {full / 1e6:.2f} MB")


def _bit_operations(content: Content) -> Headline:
    """Return the saved bit operations. The saving of a chain is the harmonic mean of its steps' savings."""
    records = [content.bundle.manifest.precisions[name] for name in content.chain.precision]
    layers = 1 / fmean(1 / record.bit_operations_saved for record in records)
    everything = 1 / fmean(1 / saved_all(content.bundle.manifest.precisions, name) for name in content.chain.network)
    return Headline("Bit operations", f"{everything:.1f}x fewer", f"for the whole network; {layers:.1f}x for the quantized layers")


def _time(content: Content, times: MachineTimes) -> Headline:
    known, name = times.milliseconds_a_step, "Measured time per step"
    if missing := {FULL_PRECISION, *content.chain.network} - known.keys():
        return Headline(name, "unknown", f"{times.machine} has not timed {', '.join(sorted(missing))}")
    chain = fmean(known[name] for name in content.chain.network)
    speed = f"{known[FULL_PRECISION] / chain:.2f}x as fast as full precision"
    return Headline(name, f"{chain:.1f} ms", f"{speed}; mean over the chain, without opening engines; {times.machine}")


def _noise(content: Content) -> Headline:
    raw = _mean_of_chain(content, lambda steps: steps.snr_db)
    corrected = _mean_of_chain(content, lambda steps: steps.corrected_snr_db)
    if raw is None or corrected is None:
        return Headline("Noise", "none", "in at least one step the output equals full precision's")
    return Headline(
        "Noise, corrected",
        f"{corrected:.1f} dB SNR",
        f"{raw:.1f} dB without correction; mean over the chain's quantized steps. Higher is better",
    )


def _mean_of_chain(content: Content, series: Callable[[PrecisionSteps], Series]) -> float | None:
    """Return the mean over the quantized steps, each at the precision that takes it."""
    by_name = {steps.name: series(steps) for steps in content.measured}
    return mean_of(by_name[name][step] for step, name in enumerate(content.chain.network) if name in by_name)
