"""What an engine is built from and for: the whole of what parent and child process share, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.tensorrt.flavour import FLAVOURS, Flavour, FlavourName


@dataclass(frozen=True)
class BatchProfile:
    """Rows of a network call: the fewest, those that kernels are chosen for, and the most. Guidance makes two rows of a sample."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class BuildSpec:
    """One engine to build.

    Attributes:
        graph: ONNX file; weights beside it are found by its path.
        flavour: of TensorRT.
        profile: of every input whose batch is free.
        workspace_gib: most memory that a kernel may use while it runs; None sets no limit.
        compute_capabilities: what a portable engine is for, such as SM89; none given means every one that the flavour knows.
    """

    graph: Path
    flavour: FlavourName
    profile: BatchProfile
    workspace_gib: float | None = None
    compute_capabilities: tuple[str, ...] = ()

    @property
    def traits(self) -> Flavour:
        return FLAVOURS[self.flavour]

    @property
    def options(self) -> dict[str, object]:
        """Everything but the graph: what makes another engine of the same graph."""
        return {name: value for name, value in asdict(self).items() if name != "graph"}

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "graph": str(self.graph)})

    @classmethod
    def from_json(cls, text: str) -> BuildSpec:
        fields = json.loads(text)
        fields.update(
            graph=Path(fields["graph"]),
            profile=BatchProfile(**fields["profile"]),
            compute_capabilities=tuple(fields["compute_capabilities"]),
        )
        return cls(**fields)
