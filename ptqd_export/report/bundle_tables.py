"""Tables of the bundle's contents: precisions, steps, layers, schedules, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from engines.api.layer_info import StoredLayer
from engines.chain.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.attention_record import AttentionRecord
from ptqd_export.records.kernel_advice import kernel_advice
from ptqd_export.records.stored_attention import attention_of
from ptqd_export.records.times_file import MachineTimes
from ptqd_export.report.chain_steps import PrecisionSteps, Series, mean_of
from ptqd_export.report.content import Content
from ptqd_export.report.tables import NOTHING, Cell, Table, decibels, megabytes, number, words


def precision_table(content: Content) -> Table:
    """Make a table of every precision alone: size, bit operations, time on every machine, noise, and number of steps that it takes."""
    saved = ("bit operations saved, quantized layers", "bit operations saved, whole network")
    times = content.evidence.times
    marks = [""] if len(times) == 1 else [f" [{index}]" for index, _ in enumerate(times, start=1)]
    timed = [f"ms per step{mark}" for mark in marks]
    grouped = ["groups of steps"] if _has_groups(content) else []
    columns = ("precision", *grouped, "size", "relative size", *saved, *timed, "noise SNR", "R2", "corrected SNR", "steps")
    rows = [_precision_row(content, name) for name in content.precisions]
    machines = [f"; times{mark}: {measured.machine}" for mark, measured in zip(marks, times, strict=True)]
    return Table.of(f"Each precision alone, means over the steps{''.join(machines)}", columns, rows)


def _precision_row(content: Content, name: str) -> list[Cell]:
    manifest = content.bundle.manifest
    record, size, full = manifest.precisions[name], manifest.bytes_of([name]), manifest.bytes_of([FULL_PRECISION])
    measured = [steps for steps in content.steps if steps.name == name]
    snr, r2, corrected = ([value for steps in measured for value in series(steps)] for series in (_snr, _r2, _corrected_snr))
    return [
        words(name),
        *([number(len(record.networks), "d")] if _has_groups(content) else []),
        megabytes(size),
        number(size / full, ".2f", "x") if full else NOTHING,
        number(record.bit_operations_saved, ".1f", "x"),
        number(record.bit_operations_saved_all, ".1f", "x"),
        *(_time(times, name) for times in content.evidence.times),
        decibels(mean_of(snr)),
        number(mean_of(r2), ".3f"),
        decibels(mean_of(corrected)),
        number(content.taken[name], "d"),
    ]


def _has_groups(content: Content) -> bool:
    """Whether any precision divides the steps into groups."""
    return any(len(record.networks) > 1 for record in content.bundle.manifest.precisions.values())


def _time(times: MachineTimes, name: str) -> Cell:
    known = times.milliseconds_a_step
    if name not in known or FULL_PRECISION not in known:
        return NOTHING
    return Cell(f"{known[name]:.1f} ({known[FULL_PRECISION] / known[name]:.2f}x)", known[name])


def advice(content: Content) -> list[str]:
    """Return what the build's summary advises, for every machine whose times are known."""
    manifest = content.bundle.manifest
    found = {
        times.machine: kernel_advice(manifest.target.name, times.provider, manifest.precisions, sums_in_16_bits=times.sums_in_16_bits)
        for times in content.evidence.times
    }
    return [f"{machine}: {text}." for machine, text in found.items() if text is not None]


def chain_table(content: Content) -> Table:
    """Make a table of the default chain, step by step."""
    chain = content.chain
    columns = ("step", "timestep", "precision", "a/(1-a)", "sigma", "corrected sigma", "variance absorbed", "not absorbed")
    rows = [
        [
            number(step, "d"),
            number(chain.timestep[step], "g"),
            words(chain.network[step]),
            decibels(chain.threshold_db[step]),
            number(chain.sigma[step], ".5g"),
            number(chain.sigma_corrected[step], ".5g"),
            number(chain.absorbed[step], ".3g"),
            number(chain.unabsorbed[step], ".3g"),
        ]
        for step in range(len(chain.precision))
    ]
    return Table.of("The chain, step by step", columns, rows)


def series_tables(content: Content) -> dict[str, Table]:
    """Make a table of the numbers in each plot, by the plot's name."""
    shown: dict[str, tuple[str, Callable[[PrecisionSteps], Series]]] = {
        "snr": ("Corrected SNR as noise prediction, in dB", lambda steps: steps.epsilon_snr_db),
        "snr-raw": ("SNR in dB", _snr),
        "k": ("k", lambda steps: steps.k),
        "r2": ("R2", _r2),
        "bias": ("Bias", lambda steps: steps.bias),
        "residual-variance": ("Residual variance", lambda steps: steps.residual_variance),
    }
    return {name: _series_table(caption, content.measured, series) for name, (caption, series) in shown.items()}


def _series_table(caption: str, precisions: Sequence[PrecisionSteps], series: Callable[[PrecisionSteps], Series]) -> Table:
    by_step = enumerate(zip(*map(series, precisions), strict=True))
    rows = [[number(step, "d"), *(number(value, ".4g") for value in values)] for step, values in by_step]
    return Table.of(f"{caption}, by step and precision", ("step", *(steps.name for steps in precisions)), rows)


def layer_table(content: Content) -> Table:
    """Make a table of every layer with weights: its bits at each precision, and why they differ from the plan's."""
    columns = ("layer", "operator", "role", *(steps.name for steps in content.steps), "why its bits differ from the plan's")
    rows = [_layer_row(of_layer) for of_layer in zip(*(steps.layers for steps in content.steps), strict=True)]
    return Table.of("Bits of weights / activations", columns, rows)


def _layer_row(layers: Sequence[StoredLayer]) -> list[Cell]:
    first, reasons = layers[0], dict.fromkeys(layer.reason for layer in layers if layer.reason)
    return [words(first.name), words(first.op), words(first.role), *map(_bits, layers), words("; ".join(reasons) or None)]


def _bits(layer: StoredLayer) -> Cell:
    text = "float" if layer.weight_bits is None else f"{layer.weight_bits} / {layer.activation_bits or 'float'}"
    text += "".join(f" + {what}" for what in layer.bits().techniques)
    return Cell(text, float(100 * (layer.weight_bits or 32) + (layer.activation_bits or 32)))


def attention_table(content: Content) -> Table:
    """Make a table of what the products of every attention compute with at each precision; empty if the plan keeps them in float."""
    found = attention_of(content.bundle)
    columns = ("attention", *found, "why its products stay in float")
    rows = [_attention_row(of_one) for of_one in zip(*found.values(), strict=True)]
    return Table.of("Products of attention", columns, rows)


def _attention_row(at: Sequence[AttentionRecord]) -> list[Cell]:
    reasons = dict.fromkeys(one.reason for one in at if one.reason)
    return [words(at[0].name), *(words(one.form) for one in at), words("; ".join(reasons) or None)]


def reason_table(content: Content) -> Table:
    """Make a table of how many layers have bits that differ from the plan's, by reason and precision."""
    found = {steps.name: Counter(layer.reason for layer in steps.layers if layer.reason) for steps in content.steps}
    reasons = dict.fromkeys(reason for counts in found.values() for reason in counts)
    rows = [[words(reason), *(number(counts[reason], "d") for counts in found.values())] for reason in reasons]
    return Table.of("Number of layers whose bits differ from the plan's, and why", ("reason", *found), rows)


def schedule_table(content: Content) -> Table:
    """Make a table of all schedules of the bundle."""
    names = content.bundle.schedules
    columns = ("schedule", "sampler", "steps", "eta", "guidance", "correction", "variance", "policy", "steps by precision")
    return Table.of("Schedules of the bundle", columns, [_schedule_row(name, content.bundle.schedule(name)) for name in names])


def _schedule_row(name: str, schedule: Schedule) -> list[Cell]:
    sampler, correction = schedule.sampler, schedule.correction
    taken = Counter(step.network for step in schedule.steps)
    return [
        words(name),
        words(sampler.name),
        number(sampler.steps, "d"),
        number(sampler.eta, "g"),
        number(sampler.guidance, "g"),
        words(correction.mode if correction.mode == "none" else f"{correction.mode} ({', '.join(correction.parts) or 'no parts'})"),
        words(correction.variance),
        words(schedule.policy),
        words(", ".join(f"{count} {precision}" for precision, count in taken.items())),
    ]


def version_table(content: Content) -> Table:
    """Make a table of the versions of the tools that built the bundle."""
    rows = [[words(name), words(version)] for name, version in content.bundle.manifest.versions.items()]
    return Table.of("Versions that built the bundle", ("package", "version"), rows)


def _snr(steps: PrecisionSteps) -> Series:
    return steps.snr_db


def _r2(steps: PrecisionSteps) -> Series:
    return steps.r2


def _corrected_snr(steps: PrecisionSteps) -> Series:
    return steps.corrected_snr_db
