"""Extrapolate a build and sampling to a model and a number of GPUs that nobody has tried: seconds on paper, all assumptions in a table.

    python -m tools.scale_model                                   # 12 B parameters, 50,000 images at 1024 px, on 1, 8 and 64 GPUs
    python -m tools.scale_model --write mine.json                 # the assumptions as a file, to change
    python -m tools.scale_model --assumptions mine.json --set steps=50 --set gpus=4

The counts of evaluations are those of the code that runs them; what an evaluation takes follows from the assumptions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from calib.walk.end_choice import SHARE
from calib.walk.fit import PROBED_SAMPLES, probe_evaluations
from engines.errors import UnknownNameError, UsageError
from ptqd_export.graph.checks.verify import RUNS, VERIFIED_STATES
from tools.scale_assumptions import ASSUMPTIONS, Assumption

GPUS = (1, 8, 64)
GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class ScaleModel:
    """Seconds and bytes that follow from the assumptions.

    Attributes:
        values: value of every assumption by name.
        gpus: number of GPUs.
    """

    values: Mapping[str, float]
    gpus: int

    def _of(self, name: str) -> float:
        return self.values[name]

    @cached_property
    def operations(self) -> float:
        """Operations of one row through the network: two for each parameter and token, and attention."""
        tokens = (self._of("image_side") / self._of("pixels_a_token")) ** 2 + self._of("text_tokens")
        attention = 4 * self._of("layers") * tokens**2 * self._of("width")
        return 2 * self._of("parameters") * tokens + attention

    def row_seconds(self, kind: str) -> float:
        """Seconds of a row in full batches: of arithmetic, or of reading the weights once a batch, whichever is longer."""
        arithmetic = self.operations / (self._of(f"{kind}_tera_ops") * TERA * self._of("utilisation"))
        reading = self.weights(kind) / (self._of("memory_gb_a_second") * 1e9) / self._of("batch")
        return max(arithmetic, reading)

    def weights(self, kind: str) -> float:
        """Bytes of the weights on a device."""
        return self._of("parameters") * self._of(f"{kind}_bytes_a_parameter")

    @property
    def engines_gib(self) -> float:
        """Memory of all engines of a chain on one device, with the activations that they share."""
        return (self._of("precisions") * self.weights("quantized") + self._of("batch") * self._of("activation_mb_a_row") * 1e6) / GIB

    @property
    def build(self) -> dict[str, float]:
        """Seconds of the parts of a build. The walk, which a budget takes twice, is shared among the GPUs; everything else runs on one."""
        steps, branches, networks = self._of("steps"), self._of("branches"), 1 + self._of("precisions")
        once = steps * self._of("calibration_samples")
        walked, judged = once * (1 + self._of("budget")), SHARE * once * networks
        rows = {
            "states": steps * math.ceil(self._of("activation_samples") / steps) * 1.0,
            "verification": (RUNS + 2) * VERIFIED_STATES * self._of("precisions"),
            "probes": PROBED_SAMPLES * probe_evaluations(int(networks), int(steps)) * self._of("budget"),
        }
        full, quantized = self.row_seconds("full"), self.row_seconds("measured")
        parts = {name: branches * count * full for name, count in rows.items()}
        walk = branches * walked * (full + self._of("precisions") * quantized) / self.gpus + steps * self._of("step_overhead")
        parts["walk"] = walk + self._start
        parts["choice of corrections"] = branches * judged * quantized
        parts["trace and graphs"] = self._of("graph_seconds_a_billion") * self._of("parameters") / 1e9 * networks
        parts["engines"] = self._of("engine_seconds_a_billion") * self._of("parameters") / 1e9 * self._of("precisions")
        return parts

    @property
    def sampling(self) -> dict[str, float]:
        """Seconds of the parts of sampling. Batches go to the GPUs in waves; the last one may be short."""
        batch = self._of("batch")
        waves = math.ceil(math.ceil(self._of("images") / batch) / self.gpus)
        chain = self._of("steps") * self._of("branches") * self.row_seconds("quantized") * batch
        return {
            "start": self._start + self.weights("quantized") * self._of("precisions") / (self._of("disk_gb_a_second") * 1e9),
            "networks": waves * chain,
            "decoder": waves * batch * self._of("decoder_seconds"),
            "units": waves * self._of("unit_overhead"),
        }

    @property
    def moved(self) -> dict[str, float]:
        """Bytes that cross the network, in GB: the graphs to every machine, latents of the walk at every step, and pictures back."""
        machines = math.ceil(self.gpus / self._of("gpus_a_machine"))
        states = (self._of("image_side") / 8) ** 2 * self._of("latent_channels") * 4
        return {
            "graphs": (machines - 1) * (self.weights("full") + self._of("precisions") * self.weights("quantized")) / 1e9,
            "walk": 0.0
            if self.gpus == 1
            else self._of("steps") * self._of("calibration_samples") * states * (2 + self._of("precisions")) / 1e9,
            "pictures": self._of("images") * self._of("picture_mb") / 1e3,
        }

    @property
    def _start(self) -> float:
        return self._of("ray_start") if self.gpus > 1 else 0.0


def with_changes(base: Mapping[str, Assumption], file: Path | None, changes: tuple[str, ...]) -> dict[str, float]:
    """Return the value of every assumption, from a file and from `name=value` pairs, the last one winning.

    Raises:
        UsageError: a name is unknown, or a value is not a positive number, or 0.
    """
    given: list[tuple[str, Any]] = list(json.loads(file.read_text()).items()) if file is not None else []
    given += [(name, value) for name, _, value in (change.partition("=") for change in changes)]
    values = {name: one.value for name, one in base.items()}
    for name, value in given:
        if name not in values:
            raise UnknownNameError("There is no such assumption.", found=name, known=tuple(values))
        values[name] = _number(name, value["value"] if isinstance(value, dict) else value)
    return values


def _number(name: str, value: object) -> float:
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise UsageError("An assumption is not a number.", found=f"{name}={value}", expected="a number, 0 or more")
    return found


def tables(values: Mapping[str, float], base: Mapping[str, Assumption] = ASSUMPTIONS) -> str:
    """Return the estimate and the assumptions as tables of Markdown."""
    models = [ScaleModel(values, gpus) for gpus in GPUS]
    head = ["| | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS) + " |", "|---|" + "---:|" * len(GPUS)]
    rows = [f"| build: {name} | " + " | ".join(_duration(model.build[name]) for model in models) + " |" for name in models[0].build]
    rows += ["| **build** | " + " | ".join(_duration(sum(model.build.values())) for model in models) + " |"]
    rows += [
        f"| sampling: {name} | " + " | ".join(_duration(model.sampling[name]) for model in models) + " |" for name in models[0].sampling
    ]
    rows += ["| **sampling** | " + " | ".join(_duration(sum(model.sampling.values())) for model in models) + " |"]
    rows += [f"| moved: {name} | " + " | ".join(f"{model.moved[name]:,.0f} GB" for model in models) + " |" for name in models[0].moved]
    rows += ["| engines on a GPU | " + " | ".join(f"{model.engines_gib:.0f} GiB" for model in models) + " |"]
    said = ["| assumption | value | where it comes from |", "|---|---:|---|"]
    said += [f"| `{name}` | {f'{values[name]:g} {one.unit}'.rstrip()} | {one.source} |" for name, one in base.items()]
    return "\n".join([*head, *rows, "", *said])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@click.command()
@click.option("--assumptions", "file", type=click.Path(path_type=Path, exists=True), help="JSON file of assumptions by name.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one assumption; repeat for several.")
@click.option("--write", type=click.Path(path_type=Path), help="Write the assumptions to a file, to change them there.")
def main(file: Path | None, changes: tuple[str, ...], write: Path | None) -> None:
    """Print seconds of a build and of sampling on 1, 8 and 64 GPUs, and the assumptions behind them."""
    values = with_changes(ASSUMPTIONS, file, changes)
    if write is not None:
        content = {name: {"value": values[name], "unit": one.unit, "source": one.source} for name, one in ASSUMPTIONS.items()}
        write.write_text(json.dumps(content, indent=1) + "\n")
    click.echo(tables(values))


if __name__ == "__main__":
    main()
