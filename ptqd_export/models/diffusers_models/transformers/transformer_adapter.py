"""Calls a transformer of diffusers in the common interface, as its row of the table says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptqd_export.models.base import Adapter
from ptqd_export.models.diffusers_models.transformers.frame import Frame, pack, unpack
from ptqd_export.models.diffusers_models.transformers.transformer_family import TransformerFamily


class TransformerAdapter(Adapter):
    """Calls a transformer with its conditions by name. The state is latents [B, C, *sides]; packing is part of the graph.

    Channels behind those of the state, a learned variance, are dropped.

    Args:
        network: the transformer.
        conditions: names of its conditions.
        family: its row of the table.
        frame: sizes of a sample.
    """

    def __init__(self, network: nn.Module, conditions: tuple[str, ...], family: TransformerFamily, frame: Frame) -> None:
        super().__init__(network, conditions)
        self._family, self._frame = family, frame
        self._side, self._timestep = family.side(frame.config), family.timestep(frame.config)
        if family.prepare is not None:
            family.prepare(self.network, frame)

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        for value in conditions:
            torch._check(value.shape[0] == sample.shape[0])  # else the exporter gives each input a batch of its own
        named = dict(zip(self.conditions, conditions, strict=True))
        given = named if self._family.extra is None else {**named, **self._family.extra(self._frame, named)}
        t = self._timestep.scale * timestep + self._timestep.offset
        if self._family.layout == "latents":
            out: Tensor = self.network(sample, timestep=t, return_dict=False, **given)[0]
        else:
            tokens = self.network(pack(sample, self._side), timestep=t, return_dict=False, **given)[0]
            out = unpack(tokens, self._frame.sides, self._side)
        known = out[:, : sample.shape[1]]
        return -known if self._family.negated else known
