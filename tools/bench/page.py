"""Format the benchmark's results as a Markdown page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from tools.bench.contestants import CONTESTANTS, EAGER, FP32
from tools.bench.models import MODELS
from tools.bench.profile import Profile
from tools.bench.result import Machine, Result, Row
from tools.bench.start import Start

HEADER = (
    "contestant", "images/s", "chain, ms", "network, ms", "chain, against eager", "chain, against FP32", "network, against FP32",
    "SNR, dB", "load, s", "peak memory, MiB",
)  # fmt: skip
OPERATORS = 10
"""Number of operators that a profile lists; the others are added up."""

INTRODUCTION = """\
# Benchmark

For anyone who wants to know how fast a quantized model runs on a CPU: ours against diffusers in PyTorch, full precision on ONNX Runtime and
OpenVINO, and ONNX Runtime's own quantization tool. [Speed](speed.md) explains where the time goes and what limits it.

Written by `python -m tools.bench page build/bench/*/*.json`, from what these commands measured:

    python -m tools.bench build
    python -m tools.bench run digits
    python -m tools.bench run ddpm-36m
    python -m tools.bench run dit-s2
    python -m tools.bench start digits
    python -m tools.bench start ddpm-36m
    python -m tools.bench profile digits
    python -m tools.bench profile ddpm-36m

A fourth model, `ldm-4`, has ten times as many parameters. It is built and run only when it is named.

Every contestant runs in its own process. The contestants take turns, chain by chain and call by call, after a warm-up round, and the
tables show medians. Compare the ratios, because the times depend on the machine. A ratio above 1 is faster. The columns are:

* **chain**: one whole chain of the batch, with its noise and its steps. diffusers runs its own DDIM scheduler; all others run our loop.
* **network**: one call of the network; guidance makes two rows of each sample.
* **SNR**: the network's outputs compared with full precision on ONNX Runtime, at the states of full-precision chains; mean over the steps.
* **load**: time from importing the runtime to the end of the first network call. For `torch.compile` this includes the compilation. Our
  engines on OpenVINO compile at their first load on a machine, which is measured here, and keep the result for the next load.
* **peak memory**: peak memory of the contestant's process, including Python and loading.

`quantize_static` is ONNX Runtime's own tool. It calibrates ranges on states of full-precision chains and quantizes weights per channel. All
OpenVINO rows use the engine of `--runtime openvino`, which, like ONNX Runtime, computes in float32 where a graph has no integers. By
default, OpenVINO uses bfloat16 on processors that support it, and quantizes inputs that the graph leaves unquantized.

Models with a profile have one more table: where a network call spends its time, by ONNX Runtime's profiler. The profiler watches what a
chain runs: the graph as the runtime optimized it, opened with the same options and threads. A call with several rows is cut into pieces
that run at the same time; the times are medians summed over nodes and pieces. Read the shares rather than the times, because contestants
are profiled one after the other and not in turns. Each profile names its machine, which need not be the machine of the other tables."""


def page(
    results: Sequence[Result],
    starts: Mapping[str, Start] = MappingProxyType({}),
    profiles: Mapping[str, Profile] = MappingProxyType({}),
) -> str:
    """Return the page, with a section for each model: its batches, and its start-up figures and profile, given by model."""
    lines = [INTRODUCTION, "", *_machines(results)]
    for model in MODELS:
        of_model = sorted((result for result in results if result.model == model), key=lambda result: result.batch)
        if not of_model:
            continue
        lines += ["", f"## {of_model[0].title}", ""]
        lines += [f"{of_model[0].parameters / 1e6:.1f} million parameters, guidance {of_model[0].guidance:g}."]
        for result in of_model:
            lines += ["", *table(result)]
        if model in starts:
            lines += ["", _start_text(starts[model])]
        if model in profiles:
            lines += ["", *profile_table(profiles[model])]
    return "\n".join(lines)


def table(result: Result) -> Iterator[str]:
    """Yield the table of all contestants at one batch, and the contestants that were left out."""
    steps = f"{result.steps} steps" if result.steps == result.schedule_steps else f"{result.steps} of {result.schedule_steps} steps"
    yield f"Batch {result.batch}, {steps}, median of {result.rounds} rounds:"
    yield ""
    yield from _head(HEADER)
    for row in result.rows.values():
        yield _line(_cells(row, result))
    for name, reason in result.left_out.items():
        yield ""
        yield f"Left out: {CONTESTANTS[name].title}: {reason}"


def _cells(row: Row, result: Result) -> tuple[str, ...]:
    eager, fp32 = result.rows.get(EAGER), result.rows[FP32]
    return (
        row.title,
        f"{result.batch / row.chain_seconds:.2f}",
        f"{1000 * row.chain_seconds:.1f}",
        f"{1000 * row.network_seconds:.2f}",
        "" if eager is None else f"{eager.chain_seconds / row.chain_seconds:.2f}x",
        f"{fp32.chain_seconds / row.chain_seconds:.2f}x",
        f"{fp32.network_seconds / row.network_seconds:.2f}x",
        "" if row.snr_db is None else f"{row.snr_db:.1f}",
        f"{row.load_seconds:.1f}",
        f"{row.peak_mib:.0f}",
    )


def profile_table(profile: Profile) -> Iterator[str]:
    """Yield the milliseconds of a call by operator with their share, for every contestant, the largest operators first."""
    rows = list(profile.rows.values())
    largest = {name: max(row.get(name, 0.0) for row in rows) for name in itertools.chain(*rows)}
    names = sorted(largest, key=lambda name: -largest[name])
    machine = _described(profile.machine, "onnxruntime")
    yield f"Where a network call at batch {profile.batch} spends its time, in milliseconds, on {machine}:"
    yield ""
    yield from _head(("operator", *(CONTESTANTS[name].title for name in profile.rows)))
    for name in names[:OPERATORS]:
        yield _line((f"`{name}`", *(_share([name], row) for row in rows)))
    yield _line(("others", *(_share(names[OPERATORS:], row) for row in rows)))
    yield _line(("all", *(f"{sum(row.values()):.2f}" for row in rows)))


def _share(names: Sequence[str], row: Mapping[str, float]) -> str:
    """Return the milliseconds of these operators and their share; empty if the contestant runs none of them."""
    milliseconds = sum(row.get(name, 0.0) for name in names)
    return f"{milliseconds:.2f} ({milliseconds / sum(row.values()):.0%})" if milliseconds else ""


def _start_text(start: Start) -> str:
    graphs = ", ".join(f"{name} {size:.1f}" for name, size in start.graph_mib.items())
    weights = ", ".join(f"{name} {engine.weights_mib:.1f}" for name, engine in start.engines.items())
    memory, largest = start.memory, start.largest
    return (
        f"`ptqd-run sample` begins its first batch {start.seconds:.2f} s after the start of the process. An engine swap adds "
        f"{start.swap_milliseconds:.2f} ms to a network call at batch {start.batch}. Sizes of the graphs in MiB: {graphs}.\n"
        "\n"
        f"Memory with all precisions loaded: sampling peaks at {memory.peak_mib:.0f} MiB, {memory.before_mib:.0f} MiB of them in use "
        f"before the first engine; {memory.file_mib:.0f} MiB are file pages, which processes share. ONNX Runtime reports, in MiB, "
        f"constants of {weights}, and activations of {largest.activations_mib:.1f} for the largest engine. The engines use "
        f"{start.against_all:.2f} times the sum of these, and {start.against_largest:.2f} times what the largest engine needs alone."
    )


def _machines(results: Iterable[Result]) -> Iterator[str]:
    """Yield one line per machine; usually there is only one."""
    for machine in dict.fromkeys(_described(result.machine) for result in results):
        yield f"Measured on {machine}."


def _described(machine: Machine, *packages: str) -> str:
    """Return the processor and the versions of these packages, by default of all."""
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in packages or machine.versions)
    return f"{machine.processor}, {machine.cores} cores, {', '.join(machine.instructions)}; {versions}"


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _line(cells)
    yield "| --- |" + " ---: |" * (len(cells) - 1)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
