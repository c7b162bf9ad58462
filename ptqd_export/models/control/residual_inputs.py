"""The residuals that a U-Net takes from a control network, as inputs of the exported graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from ptqd_export.models.base import Declaration
from ptqd_export.models.conditions import DOWN, INTRABLOCK, MID, ConditionInput
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter
from ptqd_export.models.diffusers_models.probed_network import BATCH, built_on_meta, meta_values
from ptqd_export.models.places.other_files import CHECKPOINTS
from ptqd_export.plan import ControlKind

TAKING = "UNet2DConditionModel"
"""Class of the networks that take residuals."""


def with_residuals(path: Path, declared: Declaration, kind: ControlKind) -> Declaration:
    """Return the declaration of a network that also takes the residuals of a control network.

    Args:
        path: folder of the model.
        declared: what its configuration declares.
        kind: kind of the control network.

    Raises:
        UsageError: the network takes no residuals.
    """
    if path.suffix in CHECKPOINTS or DiffusersFolder(path).kind != TAKING:
        raise UsageError(
            "Residuals of control networks are not supported for this network.",
            found=f"model.control for {path}: {declared.family}",
            expected=f"a pipeline with a {TAKING}: Stable Diffusion 1.x, 2.x or SDXL",
            mend="leave model.control out of the plan",
        )
    shapes = RESIDUALS[kind](*_features(DiffusersFolder(path), declared))
    return replace(declared, control=tuple(ConditionInput(name, "float32", shape) for name, shape in shapes.items()))


Shape = tuple[int, ...]


def _features(folder: DiffusersFolder, declared: Declaration) -> tuple[nn.Module, dict[str, Any]]:
    """Return the U-Net on torch's `meta` device, and what its blocks return, by name."""
    network: Any = built_on_meta(folder)
    found = dict[str, Any]()
    named = {"conv_in": network.conv_in, "mid_block": network.mid_block}
    named |= {f"down_blocks.{index}": block for index, block in enumerate(network.down_blocks)}
    hooks = [block.register_forward_hook(lambda _, __, out, name=name: found.update({name: out})) for name, block in named.items()]
    adapter = DiffusersAdapter(network, tuple(one.name for one in declared.inputs))
    sample = torch.empty(BATCH, *declared.sample_shape, device="meta")
    with torch.no_grad():
        adapter(sample, torch.empty(BATCH, device="meta"), *map(meta_values, declared.inputs))
    for hook in hooks:
        hook.remove()
    return network, found


def _shape(value: Tensor) -> Shape:
    return tuple(value.shape[1:])


def _of_controlnet(network: nn.Module, found: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes of the residuals of a ControlNet: one for each skip connection, and one behind the middle block."""
    blocks = [found[f"down_blocks.{index}"][1] for index in range(len(network.down_blocks))]  # type: ignore[arg-type]  # a ModuleList
    skips = [found["conv_in"], *(one for skipped in blocks for one in skipped)]
    return {f"{DOWN}_{index}": _shape(one) for index, one in enumerate(skips)} | {MID: _shape(found["mid_block"])}


def _of_adapter(network: nn.Module, found: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes of the features of a T2I adapter: one for each block on the way down, and one for the middle block.

    As in diffusers' U-Net, a block with attention adds them before it halves the sides, and one without adds them behind.
    """
    shapes = []
    for index, block in enumerate(network.down_blocks):  # type: ignore[arg-type]  # a ModuleList
        out, skipped = found[f"down_blocks.{index}"]
        attends = getattr(block, "has_cross_attention", False)
        shapes.append(_shape(skipped[-2 if block.downsamplers else -1] if attends else out))
    shapes.append(_shape(found["mid_block"]))
    return {f"{INTRABLOCK}_{index}": shape for index, shape in enumerate(shapes)}


RESIDUALS: Mapping[ControlKind, Callable[[nn.Module, Mapping[str, Any]], dict[str, Shape]]] = {
    "controlnet": _of_controlnet,
    "t2i_adapter": _of_adapter,
}
"""Residuals by kind of the control network: shape of one sample by input name."""
