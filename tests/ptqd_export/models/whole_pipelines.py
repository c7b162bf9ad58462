"""diffusers' own pipelines of the small transformers: how each takes states, prepared embeddings and guidance, and returns states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.chain.noise import NoiseSource
from tests.ptqd_export.models.tiny_transformers import TINY, required_parts

Array = NDArray[Any]

EMBEDDED = ("flux-dev", "flux2-dev", "sana-sprint")
"""Families that take guidance as an input."""


def open_pipeline(name: str, model: Path, **parts: Any) -> Any:
    """Return the pipeline of a family, as it was saved; without the parts that were not."""
    import diffusers

    tiny = TINY[name]
    absent = dict.fromkeys(part for part in required_parts(tiny) if not (model / part).is_dir())
    options = {**absent, "local_files_only": True, "low_cpu_mem_usage": False, **parts}
    pipeline = getattr(diffusers, tiny.pipeline).from_pretrained(model, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_kept = cache(open_pipeline)


def walked_by_pipeline(name: str, model: Path, noise: NoiseSource, rows: Array, steps: int, guidance: float, **options: Any) -> Array:
    """Return latents [N, C, h, w], or images [N, 3, H, W] in [0, 1] if `output_type` is `np`, of the pipeline in a folder; see `walked`.

    The samples are those of the run time with the numbers 0, 1, ... and the same noise.
    """
    samples = np.arange(len(rows))
    fresh = (torch.from_numpy(noise.step(step, samples)) for step in range(steps))
    with patch("diffusers.schedulers.scheduling_scm.randn_tensor", lambda *_, **__: next(fresh)):
        return np.asarray(walked(_kept(name, model), name, torch.from_numpy(noise.start(samples)), rows, steps, guidance, **options))


def walked(pipeline: Any, name: str, start: Tensor, rows: Array, steps: int, guidance: float, **options: Any) -> Any:
    """Return what a pipeline makes of states [N, C, h, w] and rows of the prepared embeddings beside its folder, at our guidance scale."""
    given = arguments(name, Path(pipeline.name_or_path).parent / "conditions.npz", rows, guidance, start.dtype)
    if name == "sana-sprint":
        given |= {"use_resolution_binning": False, "intermediate_timesteps": 1.3 if steps == 2 else None}
    return called(pipeline, name, start, steps, {**given, **options})


def called(pipeline: Any, name: str, start: Tensor, steps: int, options: Mapping[str, Any]) -> Any:
    """Return what a pipeline makes of states [N, C, h, w]: states, or images [N, 3, H, W] in [0, 1] if `output_type` is `np`."""
    state = STATES.get(TINY[name].pipeline, _Latents)(pipeline, start)
    height, width = (side * pipeline.vae_scale_factor * state.patch for side in start.shape[2:])
    asked = {"height": height, "width": width, "num_inference_steps": steps, "output_type": "latent", **options}
    found = pipeline(**{"latents": state.given(start), **asked}, return_dict=False)[0]
    return state.returned(found) if asked["output_type"] == "latent" else np.moveaxis(found, -1, 1)


class _Latents:
    """How a pipeline takes and returns the states [N, C, h, w]: as they are.

    Attributes:
        patch: latents of the first stage along each side of a state's element.
    """

    patch = 1

    def __init__(self, pipeline: Any, start: Tensor) -> None:
        self.pipeline, self.shape = pipeline, start.shape

    def given(self, states: Any) -> Any:
        return states

    def returned(self, found: Any) -> Any:
        return found


class _Packed(_Latents):
    """As tokens of 2x2 latents."""

    def given(self, states: Any) -> Any:
        return self.pipeline._pack_latents(states, *self.shape)

    def returned(self, found: Any) -> Any:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(found, self.shape[2] * factor, self.shape[3] * factor, factor)


class _PackedFrame(_Packed):
    """The same, returned as the one frame of a video."""

    def returned(self, found: Any) -> Any:
        return super().returned(found)[:, :, 0]


class _Patches(_Latents):
    """Given as they are, returned as tokens."""

    patch = 2

    def returned(self, found: Any) -> Any:
        return found.movedim(1, 2).reshape(self.shape)


class _Denormalized(_Latents):
    """Given as they are, returned as the latents that the first stage decodes."""

    patch = 2

    def returned(self, found: Any) -> Any:
        return self.pipeline.vae.bn(self.pipeline._patchify_latents(found))


STATES = {
    "FluxPipeline": _Packed,
    "ChromaPipeline": _Packed,
    "QwenImagePipeline": _PackedFrame,
    "Flux2Pipeline": _Patches,
    "Flux2KleinPipeline": _Denormalized,
}


def arguments(name: str, tables: Path, rows: Array, guidance: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the pipeline's arguments for rows of the prepared embeddings, those for "no prompt", and our guidance scale."""
    with np.load(tables) as archive:
        stored = {key: torch.from_numpy(value) for key, value in archive.items()}
    typed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in stored.items()}
    given = {key: value[rows] for key, value in typed.items() if not key.startswith("null.")}
    nulls = {key.removeprefix("null."): value.expand(len(rows), *value.shape) for key, value in typed.items() if key.startswith("null.")}
    return _asked(name, given, nulls, guidance)


def _asked(name: str, rows: Mapping[str, Any], nulls: Mapping[str, Any], guidance: float) -> dict[str, Any]:
    if name == "z-image":
        captions = {"prompt_embeds": _unpadded(rows), "negative_prompt_embeds": _unpadded(nulls)}
        return {**captions, "guidance_scale": guidance - 1}
    given = {_argument(key): value for key, value in rows.items()}
    if name in EMBEDDED:
        return {**given, "guidance_scale": guidance}
    given |= {f"negative_{_argument(key)}": value for key, value in nulls.items()}
    if name == "qwen-image":
        return {**given, "true_cfg_scale": guidance}
    if name.startswith("flux2-klein"):
        return {**given, "guidance_scale": guidance}
    given["negative_prompt"] = None
    if name == "auraflow":  # its network takes no mask, but its pipeline asks for one
        masks = {key.replace("embeds", "attention_mask"): value[:, :, 0] for key, value in given.items() if value is not None}
        return {**given, **masks, "guidance_scale": guidance}
    if name == "flux-schnell":  # its own guidance scale has no effect
        return {**given, "true_cfg_scale": guidance}
    if name == "chroma":  # its pipeline takes masks as numbers
        masks = {key: value.float() for key, value in given.items() if key.endswith("mask")}
        return {**given, **masks, "guidance_scale": guidance}
    options = {"use_resolution_binning": False} if TINY[name].masked else {}
    return {**given, **options, "guidance_scale": guidance}


def _unpadded(conditions: Mapping[str, Any]) -> list[Any]:
    """Return embeddings as a list of as many tokens as the mask keeps."""
    masks = conditions["encoder_attention_mask"].bool()
    return [row[mask] for row, mask in zip(conditions["encoder_hidden_states"], masks, strict=True)]


def _argument(key: str) -> str:
    """Return the pipeline's name of a condition."""
    return {
        "encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask",
        "encoder_hidden_states_mask": "prompt_embeds_mask", "pooled_projections": "pooled_prompt_embeds",
        "attention_mask": "prompt_attention_mask",
    }[key]  # fmt: skip
