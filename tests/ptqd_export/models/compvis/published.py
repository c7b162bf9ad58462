"""The latent diffusion models of the paper: their YAML, the names and shapes of their tensors, and random checkpoints.

`layouts/*.txt.gz` contain a line `name shape` for every entry of the state dict of the published `LatentDiffusion` (commit a506df5 of its
repository), generated once with the original classes from the original YAML. `small-*` come from the same classes and the `small` YAML
below. FFHQ and CelebA-HQ have the layout of LSUN-Bedrooms.
"""

from __future__ import annotations

import copy
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

LAYOUTS = Path(__file__).parent / "layouts"
LAYOUT = {
    "cin256-v2": "cin256-v2",
    "lsun-bedrooms": "lsun-bedrooms",
    "lsun-churches": "lsun-churches",
    "ffhq": "lsun-bedrooms",
    "celebahq": "lsun-bedrooms",
}
"""Name of the layout of each published model."""

SMALL = ("cin256-v2", "lsun-bedrooms", "lsun-churches")
"""One model of each structure."""

SMALL_SIZE, SMALL_CODES, SMALL_CLASSES = 16, 64, 11

_LDM_4 = {
    "image_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 224,
    "attention_resolutions": [8, 4, 2],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 3, 4],
    "num_head_channels": 32,
}
_LDM_4_IMAGENET = _LDM_4 | {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 5],
    "num_heads": 1,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 512,
}
del _LDM_4_IMAGENET["num_head_channels"]
_LDM_8 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 192,
    "attention_resolutions": [1, 2, 4, 8],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2, 4, 4],
    "num_heads": 8,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
_AUTOENCODER = {
    "double_z": False,
    "z_channels": 3,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_VQ_F4 = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {"embed_dim": 3, "n_embed": 8192, "ddconfig": _AUTOENCODER, "lossconfig": {"target": "torch.nn.Identity"}},
}
_KL_F8 = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "monitor": "val/rec_loss",
        "ddconfig": _AUTOENCODER | {"double_z": True, "z_channels": 4, "ch_mult": [1, 2, 4, 4]},
        "lossconfig": {"target": "torch.nn.Identity"},
    },
}
_CLASSES = {
    "target": "ldm.modules.encoders.modules.ClassEmbedder",
    "params": {"n_classes": 1001, "embed_dim": 512, "key": "class_label"},
}
_DIFFUSION = {
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "num_timesteps_cond": 1,
    "log_every_t": 200,
    "timesteps": 1000,
    "first_stage_key": "image",
    "cond_stage_key": "class_label",
    "image_size": 64,
    "channels": 3,
    "monitor": "val/loss",
    "first_stage_config": _VQ_F4,
}


def config(name: str) -> dict[str, Any]:
    """Return the part of the published YAML that describes the model."""
    unconditional = {"cond_stage_trainable": False, "concat_mode": False, "cond_stage_config": "__is_unconditional__"}
    own: dict[str, Any] = {
        "cin256-v2": {"cond_stage_trainable": True, "conditioning_key": "crossattn", "use_ema": False, "cond_stage_config": _CLASSES},
        "lsun-churches": unconditional
        | {"linear_end": 0.0155, "image_size": 32, "channels": 4, "scale_by_std": True, "loss_type": "l1", "first_stage_config": _KL_F8},
    }.get(name, unconditional)
    unet = {"cin256-v2": _LDM_4_IMAGENET, "lsun-churches": _LDM_8}.get(name, _LDM_4)
    unet_config = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}
    params = copy.deepcopy(_DIFFUSION | {"unet_config": unet_config} | own)
    return {"model": {"base_learning_rate": 2.0e-06, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def small(name: str) -> dict[str, Any]:
    """Return `config` with narrow layers and 16 x 16 latents."""
    shrunk = config(name)
    params = shrunk["model"]["params"]
    params["image_size"] = SMALL_SIZE
    params["unet_config"]["params"] |= {"image_size": SMALL_SIZE, "model_channels": 32}
    first_stage = params["first_stage_config"]["params"]
    first_stage["ddconfig"] |= {"ch": 32, "resolution": SMALL_SIZE * 2 ** (len(first_stage["ddconfig"]["ch_mult"]) - 1)}
    if "n_embed" in first_stage:
        first_stage["n_embed"] = SMALL_CODES
    if name == "cin256-v2":
        params["unet_config"]["params"]["context_dim"] = 24
        params["cond_stage_config"]["params"] |= {"n_classes": SMALL_CLASSES, "embed_dim": 24}
    return shrunk


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by name; `name` is a file name in `layouts/` without its suffix."""
    with gzip.open(LAYOUTS / f"{name}.txt.gz", "rt") as file:
        lines = (line.split() for line in file)
        return {key: () if shape == "-" else tuple(map(int, shape.split("x"))) for key, shape in lines}


def random_values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return uniform noise of mean 0 and variance 1 that depends only on the name and shape."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    even = (raw / 2.0**64 - 0.5) * np.sqrt(12)
    return np.asarray(even, dtype=np.float32).reshape(shape)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], described: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield random weights that preserve the magnitude of activations, and the tables of the described beta schedule."""
    params = described["model"]["params"]
    betas = np.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, params["timesteps"]) ** 2
    known = {"alphas_cumprod": np.cumprod(1 - betas), "scale_factor": 0.25, "model_ema.num_updates": 1000}
    for name, shape in shapes.items():
        values = random_values(name, shape)
        if name in known:
            values = np.asarray(known[name])
        elif len(shape) > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        elif shape:
            values = 0.1 * values + (1 if name.endswith("weight") else 0)
        yield name, torch.from_numpy(np.asarray(values, dtype=np.float32))


def write_yaml(described: Mapping[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(dict(described), sort_keys=False))
    return path


def small_checkpoint(name: str, folder: Path) -> Path:
    """Write `model.ckpt` with random weights and its YAML to a folder; return the path of the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(small(name), folder / "config.yaml")
    torch.save({"state_dict": dict(random_tensors(layout(f"small-{name}"), small(name))), "epoch": 1}, folder / "model.ckpt")
    return folder / "model.ckpt"
