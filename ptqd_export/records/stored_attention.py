"""Reads what quantization made of every attention from the statistics of a bundle."""

from __future__ import annotations

from pydantic import BaseModel

from engines.bundle.bundle import Bundle
from ptqd_export.records.attention_record import AttentionRecord
from ptqd_export.records.statistics_file import read_statistics


class _StoredAttention(BaseModel):
    attention: tuple[AttentionRecord, ...] = ()


def attention_of(bundle: Bundle) -> dict[str, tuple[AttentionRecord, ...]]:
    """Return the attention at every precision whose plan quantizes it, in the network's order.

    Raises:
        BundleError: a statistics file is damaged.
    """
    files = {name: f"{bundle.statistics_folder}/{name}.json" for name in bundle.manifest.precisions}
    found = {name: read_statistics(bundle, file, _StoredAttention) for name, file in files.items() if file in bundle.manifest.files}
    return {name: stored.attention for name, stored in found.items() if stored.attention}
