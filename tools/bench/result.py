"""What the benchmark found, and what its JSON files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from engines.host.files import write_text

SCHEMA_VERSION: Literal[1] = 1


@dataclass(frozen=True)
class Machine:
    """What the figures belong to.

    Attributes:
        processor: its name.
        cores: that every contestant may use.
        instructions: those of the processor that speed up inference, by the system's names.
        versions: of the packages that were measured.
    """

    processor: str
    cores: int
    instructions: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """One contestant.

    Attributes:
        title: for people.
        chain_seconds: median of whole chains.
        network_seconds: median of single network calls.
        load_seconds: from importing the runtime to the end of the first network call.
        peak_mib: the most memory of its process, after everything was run.
        before_mib: what the process held before the contestant was loaded.
        snr_db: outputs against full precision on ONNX Runtime at the same states; None of that itself.
        profile: milliseconds of a network call by kind of operator, most first; empty where the runtime does not say.
    """

    title: str
    chain_seconds: float
    network_seconds: float
    load_seconds: float
    peak_mib: float
    before_mib: float
    snr_db: float | None
    profile: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """All contestants at one batch.

    Attributes:
        model: a name of `tools.bench.models.MODELS`.
        title: of the model.
        parameters: of the model.
        batch: samples of a chain.
        steps: of a chain.
        schedule_steps: of the schedule that they were taken from.
        guidance: other than 1 doubles the batch within the networks.
        rounds: that the medians are over.
        machine: that everything was measured on.
        rows: by contestant.
        left_out: reasons, by contestant.
    """

    model: str
    title: str
    parameters: int
    batch: int
    steps: int
    schedule_steps: int
    guidance: float
    rounds: int
    machine: Machine
    rows: Mapping[str, Row]
    left_out: Mapping[str, str]

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        stored = json.loads(path.read_text())
        if stored.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{path} is of another version")
        machine = stored["machine"]
        stored["machine"] = Machine(**{**machine, "instructions": tuple(machine["instructions"])})
        stored["rows"] = {name: Row(**row) for name, row in stored["rows"].items()}
        return cls(**stored)
