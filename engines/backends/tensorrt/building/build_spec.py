"""The specification of an engine build, which the parent process passes to the child as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.tensorrt.flavour import FLAVOURS, Flavour, FlavourName


@dataclass(frozen=True)
class BatchProfile:
    """Rows per network call: minimum, the number that kernels are chosen for, and maximum. Under guidance a sample takes two rows."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class BuildSpec:
    """One engine to build.

    Attributes:
        graph: path of the ONNX file; weights beside it are found through this path.
        flavour: flavour of TensorRT.
        profile: rows of every input whose batch size is dynamic.
        workspace_gib: maximum memory in GiB that a kernel may use while it runs; None sets no limit.
        compute_capabilities: compute capabilities that a portable engine is built for, such as SM89; empty means all that the flavour
            supports.
        refittable: names of constants that an open engine can give other values. Kernels of such an engine cannot be chosen for the values
            of these constants, and TensorRT-RTX builds it only where there is a device.
    """

    graph: Path
    flavour: FlavourName
    profile: BatchProfile
    workspace_gib: float | None = None
    compute_capabilities: tuple[str, ...] = ()
    refittable: tuple[str, ...] = ()

    @property
    def traits(self) -> Flavour:
        return FLAVOURS[self.flavour]

    @property
    def options(self) -> dict[str, object]:
        """Everything that determines the engine, except the graph."""
        every = {name: value for name, value in asdict(self).items() if name != "graph"}
        return every if self.refittable else {name: value for name, value in every.items() if name != "refittable"}

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "graph": str(self.graph)})

    @classmethod
    def from_json(cls, text: str) -> BuildSpec:
        fields = json.loads(text)
        fields.update(
            graph=Path(fields["graph"]),
            profile=BatchProfile(**fields["profile"]),
            compute_capabilities=tuple(fields["compute_capabilities"]),
            refittable=tuple(fields["refittable"]),
        )
        return cls(**fields)
