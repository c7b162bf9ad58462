"""Where the time of a network call goes, contestant by contestant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.host.files import write_text
from tools.bench.case import Case
from tools.bench.contestants import CONTESTANTS
from tools.bench.machine import this_machine
from tools.bench.result import Machine


@dataclass(frozen=True)
class Profile:
    """Profiles of one case.

    Attributes:
        batch: samples per call.
        machine: machine on which everything was measured.
        rows: milliseconds of a network call by contestant and kind of operator, in descending order.
    """

    batch: int
    machine: Machine
    rows: Mapping[str, Mapping[str, float]]

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read what `save` wrote."""
        stored = json.loads(path.read_text())
        return cls(stored["batch"], Machine.of(stored["machine"]), stored["rows"])


def measure_profile(case: Case, names: Iterable[str], tell: Callable[[str], None]) -> Profile:
    """Profile contestants one after the other.

    Args:
        case: case whose first network call is profiled.
        names: names of contestants; those that do not run on ONNX Runtime are passed over.
        tell: receives progress messages.
    """
    rows = {}
    for name in names:
        contestant = CONTESTANTS[name]
        if contestant.on_onnxruntime:
            tell(f"profiling {contestant.title}")
            rows[name] = contestant.load(case).profile()  # type: ignore[attr-defined]  # contestants on ONNX Runtime have it
    return Profile(case.batch, this_machine(), rows)
