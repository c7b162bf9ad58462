"""Stores the measured times of a bundle's engines, one file per machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, ValidationError

from engines.bundle.contract import first_problem
from engines.chain.features import precision_and_cut
from engines.chain.schedule import Strict
from engines.errors import BundleError
from engines.host.machine import machine_name
from engines.untrusted.untrusted_json import read_json_object

TIMES = "times.json"


def times_file(bundle: Path) -> Path:
    """Path of the times file of this machine."""
    return bundle / "local" / machine_name() / TIMES


class MachineTimes(Strict):
    """`local/<machine>/times.json`.

    `sums_in_16_bits` says whether the processor sums 8-bit products in 16 bits. Files of earlier versions leave it out.
    """

    processor: str
    cores: PositiveInt
    provider: Literal["CPU", "CUDA"]
    batch: PositiveInt
    guided: bool
    milliseconds_a_step: dict[str, PositiveFloat]
    sums_in_16_bits: bool = False

    @property
    def machine(self) -> str:
        device = "" if self.provider == "CPU" else f" with {self.provider}"
        return f"{self.processor}, {self.cores} cores{device}, batch {self.batch}"


def read_times(path: Path) -> MachineTimes:
    """Read the times from a file.

    Raises:
        BundleError: the times are damaged.
    """
    try:
        return MachineTimes.model_validate_json(json.dumps(read_json_object(path, BundleError)))
    except ValidationError as error:
        raise BundleError(
            "The measured times are damaged.",
            found=f"{path}: {first_problem(error)}",
            mend="delete the file, or build the bundle again",
        ) from error


LEAST_GAIN = 0.05
"""Share of a step's time that reused features must save, so that a chain may reuse them."""


def without_gain(times: Mapping[str, float]) -> tuple[str, ...]:
    """Return the networks at a cut whose steps save no time worth the error: less than `LEAST_GAIN` of a step of the whole network.

    Args:
        times: milliseconds per step, by network.
    """
    split = {name: precision_and_cut(name) for name in times}
    return tuple(name for name, (precision, cut) in split.items() if cut is not None and times[name] > (1 - LEAST_GAIN) * times[precision])
