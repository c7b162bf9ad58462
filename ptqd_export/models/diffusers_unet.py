"""diffusers folders that hold a `UNet2DModel` or a `UNet2DConditionModel`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from engines.conditioning import Conditioning, class_labels, load_table
from engines.errors import PtqdError, UsageError
from engines.samplers.noise_schedule import NoiseSchedule
from ptqd_export.models.base import Adapter, LoadedModel

EMBEDDINGS = "encoder_hidden_states"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")


class DiffusersAdapter(Adapter):
    """Calls a diffusers U-Net with its conditions by name."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        named = dict(zip(self.conditions, conditions, strict=True))
        out: Tensor = self.network(sample, timestep, return_dict=False, **named)[0]
        return out


def load_diffusers(folder: Path, null_class: int | None, conditions: Path | None) -> LoadedModel:
    """Load a pipeline folder (`unet/` and `scheduler/` inside).

    Args:
        folder: the pipeline folder.
        null_class: label that means "no class"; None takes the last of the model's labels.
        conditions: the plan's conditioning table, for models that take embeddings.

    Raises:
        UsageError: the folder is missing or its kind is not supported.
        PtqdError: its weights cannot be read.
    """
    config = read_config(folder / "unet" / "config.json")
    schedule = NoiseSchedule.from_scheduler_config(read_config(folder / "scheduler" / "scheduler_config.json"))
    kind = config.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        raise UsageError("This network is not supported.", found=f"{folder}: {kind}", expected="UNet2DModel or UNet2DConditionModel")
    shape = _sample_shape(config)
    conditioning, null = _conditioning(kind, config, null_class, conditions)
    network = _network(kind, folder / "unet")
    names = () if conditioning is None else tuple(conditioning.tables)
    return LoadedModel(
        family=f"diffusers {kind}",
        adapter=DiffusersAdapter(network, names),
        sample_shape=shape,
        conditioning=conditioning,
        null_class=null,
        noise_schedule=schedule,
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON configuration of a diffusers folder."""
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(
            "The model folder is missing or incomplete.",
            found=f"no {path}",
            expected="a diffusers pipeline folder with unet/config.json and scheduler/scheduler_config.json",
            mend="name a folder written by `save_pretrained` as model.path",
        ) from None
    except (OSError, ValueError) as error:
        raise PtqdError("A model configuration cannot be read.", found=f"{path}: {error}", expected="JSON") from error
    return config


def _network(kind: str, folder: Path) -> nn.Module:
    import diffusers

    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UsageError(
            "The model has no safetensors weights.",
            found=", ".join(sorted(p.name for p in folder.iterdir())),
            expected=" or ".join(WEIGHTS),
            mend="save the model again with `save_pretrained(..., safe_serialization=True)`",
        )
    network: type[nn.Module] = getattr(diffusers, kind)
    try:
        loaded: nn.Module = network.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)  # type: ignore[attr-defined]
    except Exception as error:  # diffusers wraps safetensors' errors in several types
        raise PtqdError(
            "The model's weights cannot be read.",
            found=f"{folder}: {_first_cause(error)}",
            expected="whole safetensors files that fit the configuration",
            mend="copy the model again",
        ) from error
    return loaded.float()


def _first_cause(error: BaseException) -> str:
    """What went wrong first: diffusers reports that it could not load, and safetensors why."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().splitlines()[0]


def _sample_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    size = config.get("sample_size")
    if size is None:
        raise UsageError(
            "The model does not say how large its samples are.",
            found="no sample_size in unet/config.json",
            expected="a number, or [height, width]",
            mend="write the size that the model was trained at into unet/config.json",
        )
    if config["in_channels"] != config["out_channels"]:
        raise UsageError(
            "The network's output is not shaped like its state.",
            found=f"{config['in_channels']} channels in, {config['out_channels']} out",
            expected="as many out as in: learned variances and inpainting inputs are not supported",
        )
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def _conditioning(
    kind: str, config: Mapping[str, Any], null_class: int | None, table: Path | None
) -> tuple[Conditioning | None, int | None]:
    if kind == "UNet2DConditionModel":
        return _embeddings(config, null_class, table), None
    if table is not None:
        raise UsageError("The model takes no embeddings.", found="model.conditions", mend="leave model.conditions out of the plan")
    labels = config.get("num_class_embeds")
    if labels:
        return _labels(labels, null_class)
    if null_class is not None:
        raise UsageError("The model has no classes.", found="model.null_class", mend="leave model.null_class out of the plan")
    return None, None


def _labels(labels: int, null_class: int | None) -> tuple[Conditioning, int]:
    null = labels - 1 if null_class is None else null_class
    if not 0 <= null < labels:
        raise UsageError("The null class is not a label of the model.", found=f"model.null_class = {null}", expected=f"0..{labels - 1}")
    return class_labels(labels - 1 if null == labels - 1 else labels, null), null


def _embeddings(config: Mapping[str, Any], null_class: int | None, table: Path | None) -> Conditioning:
    if config.get("class_embed_type") or config.get("addition_embed_type") or config.get("num_class_embeds"):
        raise UsageError(
            "Added conditions of this network are not supported.", found=f"class or addition embedding in {config['_class_name']}"
        )
    if null_class is not None:
        raise UsageError(
            "The model has no classes.", found="model.null_class", mend=f"give an array null.{EMBEDDINGS} in model.conditions instead"
        )
    expected = f"an .npz with {EMBEDDINGS}: float [rows, tokens, {config['cross_attention_dim']}]"
    if table is None:
        raise UsageError("The model takes embeddings, and the plan names none.", found="no model.conditions", expected=expected)
    conditioning = load_table(table)
    found = {name: (value.dtype, value.ndim, value.shape[-1]) for name, value in conditioning.tables.items()}
    if found != {EMBEDDINGS: (np.dtype(np.float32), 3, config["cross_attention_dim"])}:
        shapes = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in conditioning.tables.items())
        raise UsageError("The conditioning file does not fit the model.", found=f"{table}: {shapes}", expected=expected)
    return conditioning
