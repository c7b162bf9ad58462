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
        name: in plan and manifest.
        placement: the table of its graphs; several flavours of one runtime share it.
        stand_in: the build measures on ONNX Runtime, which runs the very graphs as well: right in values, and no measure of time.
        profiled: engines are built for a range of batch sizes.
        in_pieces: on the CPU its networks run in pieces, see `ptqd_export.graph.passes.embedding_cut`.
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
