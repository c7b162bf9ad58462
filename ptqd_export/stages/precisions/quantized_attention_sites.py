"""Which attention of a network has 8-bit products at a precision, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calib.quantizers.attention.observed_attention import AttentionSite
from calib.quantizers.attention.quantized_attention import INPUTS, QuantizedAttention, weights_quantizer
from calib.quantizers.quantize import Quantizer
from calib.quantizers.rules.placement import CONTAINER_BITS, HIGH_PRECISION_BITS, HighPrecision, attention_in_float
from calib.quantizers.rules.precision import ATTENTION_FORMS, AttentionForm, Precision
from calib.quantizers.scale_type import with_attention_scales_in
from engines.errors import UsageError
from ptqd_export.graph.reading.attention_products import find_attention
from ptqd_export.records.attention_record import AttentionRecord, AttentionScales
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.precisions.activations import load_attention
from ptqd_export.stages.precisions.nearest_rounding import Sources


def check_attention(context: BuildContext, traced: Path) -> None:
    """Check, before anything long, that a network has attention if the plan quantizes it.

    Raises:
        UsageError: it has none.
    """
    asked = context.plan.quantization.attention
    if asked != "float" and not find_attention(ir.load(traced / f"{FULL_PRECISION}.onnx").graph):
        raise UsageError(
            "The network has no attention to quantize.",
            found=f'quantization.attention "{asked}", and no product of a softmax in the graph',
            mend='set quantization.attention to "float"',
        )


@dataclass(frozen=True)
class AttentionSites:
    """The attention of a network at one precision; without sites if the plan keeps attention in float.

    Attributes:
        form: what quantized products compute with.
        high_precision: type of the others, and of the scales.
        sites: every attention, in the order of its calls.
        reasons: why the products of each stay in float; None for quantized ones.
    """

    form: AttentionForm
    high_precision: HighPrecision
    sites: Sequence[AttentionSite] = ()
    reasons: Sequence[str | None] = ()

    @property
    def quantized_macs(self) -> int:
        """Multiply-accumulates of the quantized products per sample."""
        return sum(site.macs for site, reason in zip(self.sites, self.reasons, strict=True) if reason is None)

    def quantized(self, quantizer: Quantizer) -> list[QuantizedAttention]:
        """Return the quantized attention with the scales that a quantizer of the network finds."""
        chosen = [(call, site.name) for call, site in enumerate(self.sites) if self.reasons[call] is None]
        if not chosen:
            return []
        form = ATTENTION_FORMS[self.form]
        found = []
        for call, name in chosen:
            query, key, value = (quantizer.activation_quantizer(f"{name}.{part}", form) for part in INPUTS)
            found.append(QuantizedAttention(call, name, query, key, value, weights_quantizer(form)))
        return with_attention_scales_in(self.high_precision, found)

    def records(self, groups: Sequence[Sequence[QuantizedAttention]]) -> list[AttentionRecord]:
        """Return a record of every attention.

        Args:
            groups: quantized attention of each group of steps, the noisiest first.
        """
        return [self._record(call, [one for group in groups for one in group if one.call == call]) for call in range(len(self.sites))]

    def _record(self, call: int, quantized: Sequence[QuantizedAttention]) -> AttentionRecord:
        site, reason = self.sites[call], self.reasons[call]
        bits = CONTAINER_BITS if reason is None else HIGH_PRECISION_BITS[self.high_precision]
        return AttentionRecord(
            name=site.name,
            form=self.form if reason is None else "float",
            reason=reason,
            bit_operations=site.macs * bits**2,
            scales=tuple(
                AttentionScales(query=one.query.scale, key=one.key.scale, value=one.value.scale, weights=one.weights.scale)
                for one in quantized
            ),
        )


def attention_sites(context: BuildContext, precision: Precision, sources: Sources) -> AttentionSites:
    """Return what the attention of the prepared network gets at a precision."""
    form, sites = context.plan.quantization.attention, load_attention(sources.seen)
    if form == "float":
        return AttentionSites(form, context.high_precision)
    products = find_attention(ir.load(sources.prepared / f"{FULL_PRECISION}.onnx").graph)
    overrides = sources.overrides(context)
    reasons = [
        attention_in_float(site.name, precision, context.placement, overrides, beside_the_state=one.beside_the_state)
        for site, one in zip(sites, products, strict=True)
    ]
    return AttentionSites(form, context.high_precision, sites, reasons)
