"""Times every runtime of this machine on a bundle's graphs, and checks its noise: what `ptqd-run --runtime auto` chooses from."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from engines.backends.base import Backend
from engines.backends.choice import ON_CPU, PACKAGES, open_backend, runtime_name
from engines.backends.measured_runtimes import MeasuredRuntime, MeasuredRuntimes
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.chain.noise import NoiseSource
from engines.errors import MissingBackendError, PtqdError
from engines.host.files import sha256
from engines.host.timing import interleaved_medians
from engines.networks.engine_bank import EngineBank
from engines.terminal.fitting_table import FittingTable, result_console
from engines.terminal.installed_packages import installed_versions
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.schedules.settings import stored_plan

PLAN = "plan.json"

ROUNDS, WARM_UP = 7, 2


def measure_runtimes(folder: Path, *, to_choose: bool = False) -> MeasuredRuntimes | None:
    """Measure the runtimes that are installed, and write `local/<machine>/runtimes.json`. None for a bundle whose target is no CPU,
    and for one without its plan, which says what its statistics were measured at.

    Args:
        folder: folder of the bundle.
        to_choose: measure nothing where a single runtime is installed.

    Raises:
        PtqdError: the bundle is damaged, or another process is writing to it.
    """
    bundle = Bundle.open(folder)
    installed = [name for name in ON_CPU if installed_versions(*PACKAGES[name])]
    on_cpu = runtime_name(bundle, "target") in ON_CPU and PLAN in bundle.manifest.files
    if not on_cpu or (to_choose and len(installed) < 2):
        return None
    batch = stored_plan(bundle).target.benchmark_batch
    with writing_to(folder):
        found = MeasuredRuntimes(bundle=sha256(folder / MANIFEST), batch=batch, runtimes=dict(_measured(bundle, batch)))
        found.write(bundle)
    return found


def print_runtimes(found: MeasuredRuntimes | None) -> None:
    """Print a table of the runtimes, if any were measured."""
    if found is None:
        return
    table = FittingTable("runtimes", ("runtime", "time per step", "departure", "for --runtime auto"), left=("for --runtime auto",))
    best = found.best({name: one.versions for name, one in found.runtimes.items()})
    for name, one in found.runtimes.items():
        time = "-" if one.milliseconds is None else f"{one.milliseconds:.1f} ms"
        departure = "-" if one.departure_db is None else f"{one.departure_db:.2f} dB"
        table.add_row(name, time, departure, "the best" if name == best else "no: " + (one.refused or "slower"))
    result_console().print(table)


def _measured(bundle: Bundle, batch: int) -> Iterator[tuple[str, MeasuredRuntime]]:
    for name in ON_CPU:
        versions = installed_versions(*PACKAGES[name])
        try:
            yield name, _measure(bundle, open_backend(bundle, name), batch, versions)
        except MissingBackendError:
            continue
        except PtqdError as error:
            refused = " ".join(str(error).split())
            yield name, MeasuredRuntime(versions=versions, milliseconds_a_step={}, milliseconds=None, departure_db=None, refused=refused)
        gc.collect()  # the next runtime needs the memory


def _measure(bundle: Bundle, backend: Backend, batch: int, versions: dict[str, str]) -> MeasuredRuntime:
    """Check the runtime at every size, and time a step at every precision at the bundle's first size.

    Raises:
        DepartureError: the noise of a precision differs from the statistics.
    """
    departure = max(check_on(one, backend) for one in bundle.at_sizes)
    schedule, manifest = bundle.schedule(), bundle.manifest
    samples = np.arange(batch, dtype=np.int64)
    x = NoiseSource(0, manifest.model.sample_shape).start(samples)
    bank = EngineBank(bundle, manifest.guidance, batch=batch, backend=backend)
    runs = {name: partial(bank[name], x, schedule.steps[0].timestep, np.zeros_like(samples)) for name in schedule.precisions}
    times = {name: 1000 * seconds for name, seconds in interleaved_medians(runs, ROUNDS, WARM_UP).items()}
    return MeasuredRuntime(
        versions=versions,
        milliseconds_a_step=times,
        milliseconds=fmean(times[step.precision] for step in schedule.steps),
        departure_db=departure,
    )
