"""Which runtimes run a bundle's graphs right on this machine, and how fast: `local/<machine>/runtimes.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from engines.bundle.bundle import Bundle
from engines.bundle.contract import first_problem
from engines.bundle.manifest import MANIFEST
from engines.chain.schedule import Strict
from engines.errors import BundleError
from engines.host.files import sha256, write_text
from engines.host.machine import machine_name
from engines.untrusted.untrusted_json import read_json_object

RUNTIMES = "runtimes.json"

Name = TypeVar("Name", bound=str)


class MeasuredRuntime(Strict):
    """One runtime.

    Attributes:
        versions: versions of the runtime's packages.
        milliseconds_a_step: median time of a step by precision; empty if the runtime refuses the graphs.
        milliseconds: mean time of a step of the default schedule; null if the runtime refuses the graphs.
        departure_db: largest difference of a signal-to-noise ratio from the bundle's statistics.
        refused: why the runtime is not to be used; null if it is right.
    """

    versions: dict[str, str]
    milliseconds_a_step: dict[str, PositiveFloat]
    milliseconds: PositiveFloat | None
    departure_db: NonNegativeFloat | None
    refused: str | None = None


class MeasuredRuntimes(Strict):
    """Every runtime that was measured.

    Attributes:
        bundle: SHA-256 of the bundle's `manifest.json`.
        batch: samples in a call.
        runtimes: what was found, by name of the runtime.
    """

    schema_version: Literal[1] = 1
    bundle: str
    batch: PositiveInt
    runtimes: dict[str, MeasuredRuntime]

    def best(self, versions: Mapping[Name, Mapping[str, str]]) -> Name | None:
        """Return the fastest runtime that is right and was measured with these versions of its packages; None if there is none."""
        times: dict[Name, float] = {}
        for name, installed in versions.items():
            found = self.runtimes.get(name)
            if found and found.refused is None and found.milliseconds is not None and found.versions == installed:
                times[name] = found.milliseconds
        return min(times, key=times.__getitem__) if times else None

    def write(self, bundle: Bundle) -> None:
        write_text(runtimes_file(bundle.folder), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, bundle: Bundle) -> MeasuredRuntimes | None:
        """Return what was measured of this very bundle; None if nothing was.

        Raises:
            BundleError: the file is damaged.
        """
        path = runtimes_file(bundle.folder)
        if not path.exists():
            return None
        try:
            found = cls.model_validate_json(json.dumps(read_json_object(path, BundleError)))
        except ValidationError as error:
            raise BundleError(
                "The measured runtimes are damaged.",
                found=f"{path}: {first_problem(error)}",
                mend="delete the file, or run `ptqd-export engines` again",
            ) from error
        return found if found.bundle == sha256(bundle.folder / MANIFEST) else None


def runtimes_file(bundle: Path) -> Path:
    """Return the path of the file of this machine."""
    return bundle / "local" / machine_name() / RUNTIMES
