"""The benchmark's results, as stored in its JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engines.host.files import write_text

SCHEMA_VERSION: Literal[2] = 2


@dataclass(frozen=True)
class Machine:
    """The machine on which the figures were measured.

    Attributes:
        processor: name of the processor.
        cores: number of cores that every contestant may use.
        instructions: the processor's instruction sets that speed up inference, by the system's names.
        versions: versions of the measured packages.
    """

    processor: str
    cores: int
    instructions: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Machine:
        """Return the machine that a JSON file describes."""
        return cls(**{**stored, "instructions": tuple(stored["instructions"])})


@dataclass(frozen=True)
class Row:
    """Figures of one contestant.

    Attributes:
        title: display name.
        chain_seconds: median time of a whole chain.
        network_seconds: median time of a single network call.
        load_seconds: time from importing the runtime to the end of the first network call.
        peak_mib: peak memory of the process after all measurements.
        before_mib: memory of the process before the contestant was loaded.
        snr_db: SNR of the outputs relative to full precision on ONNX Runtime at the same states; None for that contestant itself.
    """

    title: str
    chain_seconds: float
    network_seconds: float
    load_seconds: float
    peak_mib: float
    before_mib: float
    snr_db: float | None


@dataclass(frozen=True)
class Result:
    """All contestants at one batch.

    Attributes:
        model: key of `tools.bench.models.MODELS`.
        title: display name of the model.
        parameters: number of parameters of the model.
        batch: samples per chain.
        steps: number of steps of a chain.
        schedule_steps: number of steps of the schedule from which the steps were taken.
        guidance: guidance scale; any value above 1 doubles the batch within the networks.
        rounds: number of rounds over which the medians are taken.
        machine: machine on which everything was measured.
        rows: figures by contestant.
        left_out: reasons for leaving contestants out, by contestant.
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
            raise ValueError(f"{path} has another schema version")
        stored["machine"] = Machine.of(stored["machine"])
        stored["rows"] = {name: Row(**row) for name, row in stored["rows"].items()}
        return cls(**stored)
