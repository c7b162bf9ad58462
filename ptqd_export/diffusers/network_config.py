"""The fields of a network's `config` that pipelines read, made from the manifest under diffusers' names."""

from __future__ import annotations

from typing import Any

from engines.bundle.manifest import ConditioningRecord, InputRecord, ModelRecord
from ptqd_export.models.conditions import EMBEDDINGS, GUIDANCE, IMAGE, TIMESTEP_COND
from ptqd_export.models.diffusers_models.transformers.family_table import POOLED, TRANSFORMERS
from ptqd_export.models.diffusers_models.transformers.transformer_family import TransformerFamily

TIME_EMBEDDING = 256
"""Width of the embedding of one number of `time_ids` in SDXL. The embedding is inside the graph; pipelines only add up the widths."""


def network_config(model: ModelRecord) -> dict[str, Any]:
    """Return the configuration of the network behind the engines.

    `out_channels` is that of the engines, which is the state's: a learned variance was cut off when the network was traced. DiTPipeline
    reads this field to decide whether to cut one off, and must not.
    """
    channels, *size = model.sample_shape
    inputs = {} if model.conditioning is None else {record.name: record for record in model.conditioning.inputs}
    return {
        "sample_size": size[0] if len(set(size)) == 1 else tuple(size),
        "in_channels": channels + (inputs[IMAGE].shape[0] if IMAGE in inputs else 0),
        "out_channels": channels,
        "time_cond_proj_dim": _last(inputs.get(TIMESTEP_COND)),
        "cross_attention_dim": _last(inputs.get(EMBEDDINGS)),
        **_labels(model.conditioning),
        **_added(inputs),
        **_transformer(model, inputs),
    }


def transformer_family(model: ModelRecord) -> TransformerFamily | None:
    """Return the row of the table of transformers that a bundle's network belongs to, or None if it belongs to none."""
    return TRANSFORMERS.get(model.family.removeprefix("diffusers "))


def _transformer(model: ModelRecord, inputs: dict[str, InputRecord]) -> dict[str, Any]:
    """Return the fields of a transformer of the table.

    The graph scales timestep and guidance itself and has a size of its own, so the pipeline's factors and the multiple that it asks of a
    size are 1.
    """
    family = transformer_family(model)
    if family is None:
        return {}
    channels, *sides = model.sample_shape
    fields: dict[str, Any] = {"timestep_scale": 1.0, "guidance_embeds_scale": 1.0, "patch_size": 1, "guidance_embeds": GUIDANCE in inputs}
    width = _last(inputs.get(EMBEDDINGS))
    fields |= {"joint_attention_dim": width, "caption_channels": width, "pooled_projection_dim": _last(inputs.get(POOLED))}
    if family.layout == "tokens":
        packed = channels * family.side(fields) ** len(sides)
        fields |= {"in_channels": packed, "out_channels": packed}
    return fields


def _labels(conditioning: ConditioningRecord | None) -> dict[str, Any]:
    """Return the number of labels of a class-conditional network, including the one for no class."""
    if conditioning is None or conditioning.file is not None or [record.name for record in conditioning.inputs] != ["class_labels"]:
        return {}
    null = -1 if conditioning.null_class is None else conditioning.null_class
    return {"num_class_embeds": max(conditioning.rows, null + 1)}


def _added(inputs: dict[str, InputRecord]) -> dict[str, Any]:
    """Return the fields of a network with added text and time conditions (SDXL); pipelines check the width of the pooled text with them."""
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
