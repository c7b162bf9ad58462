"""The runtimes that a plan can name, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calib.quantizers.rules.placement import PLACEMENTS, Placement


@dataclass(frozen=True)
class Target:
    """A runtime, from the build's point of view.

    Attributes:
        name: name in plan and manifest.
        placement: placement rules of its graphs, shared by all flavours of a runtime.
        stand_in: whether the build measures on ONNX Runtime instead. That runs the same graphs: values are right, but times mean nothing.
        profiled: whether engines are built for a range of batch sizes.
        in_pieces: whether networks run in pieces on the CPU, see `ptqd_export.graph.passes.embedding_cut`.
    """

    name: str
    placement: Placement
    stand_in: bool
    profiled: bool
    in_pieces: bool


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("onnxruntime", PLACEMENTS["onnxruntime"], stand_in=False, profiled=False, in_pieces=True),
            Target("tensorrt", PLACEMENTS["tensorrt"], stand_in=True, profiled=True, in_pieces=False),
            Target("tensorrt-rtx", PLACEMENTS["tensorrt"], stand_in=True, profiled=True, in_pieces=False),
        )
    }
)
