"""The runtimes that a plan can name, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calib.placement import PLACEMENTS, Placement
from engines.backends.onnxruntime import Mode


@dataclass(frozen=True)
class Target:
    """A runtime, from the build's point of view.

    Attributes:
        name: in plan and manifest.
        placement: the table of its graphs; several flavours of one runtime share it.
        stand_in: the build measures on ONNX Runtime, which runs the very graphs as well: right in values, and no measure of time.
        profiled: engines are built for a range of batch sizes.
    """

    name: str
    placement: Placement
    stand_in: bool
    profiled: bool

    @property
    def mode(self) -> Mode:
        """How ONNX Runtime runs the graphs. Its fused kernels are for those of its own placement: another's run faster as written (the W8A8
        U-Net of the digits model: 29 ms against 43), because the weights are unpacked once, and closer to what was quantized.
        """
        return "exact" if self.stand_in else "fast"


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("onnxruntime", PLACEMENTS["onnxruntime"], stand_in=False, profiled=False),
            Target("tensorrt", PLACEMENTS["tensorrt"], stand_in=True, profiled=True),
            Target("tensorrt-rtx", PLACEMENTS["tensorrt"], stand_in=True, profiled=True),
        )
    }
)
