"""Run and measure everything that the project does with TensorRT on this machine's GPU: `python -m tools.gpu_check --bundle DIR`.

The bundle must have been built for a TensorRT target. Missing engines are built.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from engines.arrays import Float32
from engines.backends.choice import engine_settings
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import FLAVOURS, FlavourName
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine, integer_layers
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.host.files import write_text
from engines.host.timing import interleaved_medians
from engines.networks.device_stepper import DeviceStepper
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser
from engines.terminal.command_line import CommandLine
from ptqd_export.commands.engines_command import build_engines
from ptqd_export.measuring.bundle_backend import bundle_measuring_backend
from ptqd_export.stages.finish.keep_optimized import BuiltEngine

ROUNDS = 30
SEED = 0


@dataclass(frozen=True)
class PrecisionRow:
    """Figures of one precision; times are medians of a network call, including guidance and the copies to and from the device."""

    precision: str
    megabytes: float
    build_seconds: float
    parity_db: float
    graph_milliseconds: float
    no_graph_milliseconds: float
    integer_layers: int


@dataclass(frozen=True)
class GpuCheck:
    """All figures of one machine.

    Attributes:
        swap_milliseconds: extra time of a call when engines take turns, compared with one engine that runs repeatedly.
        host_update_milliseconds: time of a step of the schedule's chain with the update on the host.
        device_update_milliseconds: time of a step with the state and the update on the device.
        update_difference: largest difference between the samples of these two chains.
        shared_bytes: size of the buffers that all engines share.
        device_bytes: device memory in use while all engines are open, once with CUDA graphs and once without: weights, buffers, contexts,
            graphs and compiled kernels.
    """

    device: str
    compute_capability: str
    driver: str
    flavour: str
    version: str
    batch: int
    precisions: list[PrecisionRow]
    swap_milliseconds: float
    host_update_milliseconds: float
    device_update_milliseconds: float
    update_difference: float
    shared_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class _Study:
    """One bundle on the device, with the settings for measuring it."""

    bundle: Bundle
    settings: EngineSettings
    schedule: Schedule
    batch: int

    def bank(self, backend: TensorRtBackend) -> EngineBank:
        return EngineBank(self.bundle, self.schedule.sampler.guidance, batch=self.batch, backend=backend)

    def call(self, denoiser: EngineDenoiser) -> Float32:
        samples = np.arange(self.batch, dtype=np.int64)
        x = NoiseSource(SEED, self.bundle.manifest.model.sample_shape).start(samples)
        return denoiser(x, self.schedule.steps[0].timestep, np.zeros_like(samples))


def check(folder: Path, flavour: FlavourName, batch: int) -> GpuCheck:
    """Run and measure everything.

    Raises:
        MissingBackendError: this flavour of TensorRT is not installed, or there is no device.
    """
    cuda, bundle = Cuda(), Bundle.open(folder)
    built = build_engines(folder, flavour)
    free = cuda.free_bytes()
    study = _Study(bundle, engine_settings(bundle, flavour), bundle.schedule(), batch)
    backend = TensorRtBackend(study.settings, folder)
    bank, plain = study.bank(backend), study.bank(TensorRtBackend(study.settings, folder, cuda_graphs=False))
    rows = [_precision(study, engine, bank, plain) for engine in built if engine.name in bundle.manifest.precisions]
    host, device, difference = _updates(study, backend, bank)
    return GpuCheck(
        device=cuda.device_name(),
        compute_capability=cuda.compute_capability(),
        driver=cuda.driver_version(),
        flavour=flavour,
        version=FLAVOURS[flavour].load().__version__,
        batch=batch,
        precisions=rows,
        swap_milliseconds=_swap(study, bank, [row.precision for row in rows]),
        host_update_milliseconds=host,
        device_update_milliseconds=device,
        update_difference=difference,
        shared_bytes=backend.arena.total_bytes,
        device_bytes=free - cuda.free_bytes(),
    )


def _precision(study: _Study, built: BuiltEngine, bank: EngineBank, plain: EngineBank) -> PrecisionRow:
    name = built.name
    measured_on = bundle_measuring_backend(study.bundle)
    reference = EngineBank(study.bundle, study.schedule.sampler.guidance, batch=study.batch, backend=measured_on)[name]
    expected, found = study.call(reference), study.call(bank[name])
    runs = {"graph": partial(study.call, bank[name]), "no graph": partial(study.call, plain[name])}
    seconds = interleaved_medians(runs, ROUNDS, warm_up=3)
    engine = bank[name].engine
    assert isinstance(engine, TensorRtEngine)
    return PrecisionRow(
        precision=name,
        megabytes=built.engine.path.stat().st_size / 1e6,
        build_seconds=0.0 if built.engine.from_cache else built.engine.seconds,
        parity_db=float(10 * np.log10(np.mean(expected.astype(np.float64) ** 2) / max(np.mean((expected - found) ** 2), 1e-30))),
        graph_milliseconds=1000 * seconds["graph"],
        no_graph_milliseconds=1000 * seconds["no graph"],
        integer_layers=len(list(integer_layers(engine.layer_information()))),
    )


def _swap(study: _Study, bank: EngineBank, names: list[str]) -> float:
    """Extra milliseconds per call when the engines take turns, compared with each engine by itself; mean over the engines."""
    in_turn = interleaved_medians({name: partial(study.call, bank[name]) for name in names}, ROUNDS, warm_up=3)
    alone = {name: interleaved_medians({name: partial(study.call, bank[name])}, ROUNDS, warm_up=3)[name] for name in names}
    return 1000 * float(np.mean([in_turn[name] - alone[name] for name in names]))


def _updates(study: _Study, backend: TensorRtBackend, bank: EngineBank) -> tuple[float, float, float]:
    """Milliseconds per step with the update on the host and on the device, and the largest difference between the samples."""
    on_host = Chain(study.schedule, bank)
    on_device = Chain(study.schedule, bank, stepper=partial(DeviceStepper, kernels=backend.update_kernels))
    noise, samples = NoiseSource(SEED, study.bundle.manifest.model.sample_shape), np.arange(study.batch, dtype=np.int64)
    runs = {
        name: partial(chain.sample, noise, samples, np.zeros_like(samples)) for name, chain in (("host", on_host), ("device", on_device))
    }
    seconds = interleaved_medians(runs, 5)
    steps = len(study.schedule.steps)
    difference = float(abs(runs["host"]() - runs["device"]()).max())
    return 1000 * seconds["host"] / steps, 1000 * seconds["device"] / steps, difference


def print_check(result: GpuCheck) -> None:
    """Print all figures as one table."""
    table = Table(title=f"{result.device} ({result.compute_capability}), {result.flavour} {result.version}, batch {result.batch}")
    for column in ("precision", "size", "build", "parity", "with CUDA graph", "without", "int8 layers"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    for row in result.precisions:
        table.add_row(
            row.precision,
            f"{row.megabytes:.2f} MB",
            f"{row.build_seconds:.1f} s",
            f"{row.parity_db:.1f} dB",
            f"{row.graph_milliseconds:.3f} ms",
            f"{row.no_graph_milliseconds:.3f} ms",
            str(row.integer_layers),
        )
    table.caption = (
        f"swap {result.swap_milliseconds:+.3f} ms; step with the update on the host {result.host_update_milliseconds:.3f} ms, "
        f"on the device {result.device_update_milliseconds:.3f} ms (samples differ by {result.update_difference:.1e}); "
        f"shared buffers {result.shared_bytes / 1e6:.1f} MB; all engines, with and without graphs, {result.device_bytes / 1e6:.1f} MB"
    )
    Console().print(table)


@click.group(cls=CommandLine, invoke_without_command=True)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Bundle that was built for a TensorRT target.")
@click.option("--flavour", type=click.Choice(list(FLAVOURS)), default="tensorrt", show_default=True, help="Flavour of TensorRT to use.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Samples in one network call.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file.")
def main(bundle: Path, flavour: FlavourName, batch: int, json_file: Path | None) -> None:
    """Check TensorRT on this machine's GPU."""
    result = check(bundle, flavour, batch)
    if json_file is not None:
        write_text(json_file, json.dumps(asdict(result), indent=1) + "\n")
    print_check(result)


if __name__ == "__main__":
    main()
