"""What pipelines read of a network's `config`, from the manifest, under the names of diffusers."""

from __future__ import annotations

from typing import Any

from engines.bundle.bundle import ConditioningRecord, InputRecord, ModelRecord

TIME_EMBEDDING = 256
"""Width of one embedded number of `time_ids` in SDXL. It lies inside the graph; pipelines only add it up."""


def network_config(model: ModelRecord) -> dict[str, Any]:
    """Configuration of the network behind the engines.

    `out_channels` is that of the engines, the state's: a variance that the network learned has been cut off when it was traced, and
    DiTPipeline, which asks this field whether to cut one off, must not.
    """
    channels, *size = model.sample_shape
    inputs = {} if model.conditioning is None else {record.name: record for record in model.conditioning.inputs}
    return {
        "sample_size": size[0] if len(set(size)) == 1 else tuple(size),
        "in_channels": channels,
        "out_channels": channels,
        "time_cond_proj_dim": None,
        "cross_attention_dim": _last(inputs.get("encoder_hidden_states")),
        **_labels(model.conditioning),
        **_added(inputs),
    }


def _labels(conditioning: ConditioningRecord | None) -> dict[str, Any]:
    """Of class-conditional networks: how many labels there are, the one for no class included."""
    if conditioning is None or conditioning.file is not None or [record.name for record in conditioning.inputs] != ["class_labels"]:
        return {}
    null = -1 if conditioning.null_class is None else conditioning.null_class
    return {"num_class_embeds": max(conditioning.rows, null + 1)}


def _added(inputs: dict[str, InputRecord]) -> dict[str, Any]:
    """Of networks with added text and time conditions (SDXL): pipelines check the width of the pooled text against these."""
    text, times = _last(inputs.get("text_embeds")), _last(inputs.get("time_ids"))
    if text is None or times is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_EMBEDDING,
        "projection_class_embeddings_input_dim": text + times * TIME_EMBEDDING,
    }


def _last(record: InputRecord | None) -> int | None:
    return None if record is None or not record.shape else record.shape[-1]
