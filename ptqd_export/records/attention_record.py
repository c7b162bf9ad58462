"""What quantization made of every attention: a part of `statistics/<placement>/<precision>.json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from calib.quantizers.rules.precision import AttentionForm


class AttentionScales(BaseModel):
    """Scales of the inputs of both products, at one group of steps. Query and key are meant with the root of the attention's own scale."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    query: PositiveFloat
    key: PositiveFloat
    value: PositiveFloat
    weights: PositiveFloat


class AttentionRecord(BaseModel):
    """One attention at one precision.

    Attributes:
        name: name of the module that computes it; `#2` is its second attention.
        form: what its products compute with.
        reason: why they stay in float; None for 8 bits.
        bit_operations: those of both products per sample.
        scales: scales by group of steps, the noisiest first; empty for float.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    form: AttentionForm
    reason: str | None
    bit_operations: PositiveInt
    scales: tuple[AttentionScales, ...] = ()
