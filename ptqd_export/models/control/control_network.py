"""A control network of a diffusers folder, which computes the residuals of a U-Net from a control image."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.apps.pictures.picture_files import picture_state, pictures_in
from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.bundle.manifest import InputRecord
from engines.errors import UsageError, first_line
from engines.networks.control import CONTROL_IMAGE, STATE, Control, ControlNetwork, images_of
from engines.networks.embeddings import TIMESTEP
from ptqd_export.models.base import Adapter, ControlPart, Declaration
from ptqd_export.models.conditions import EMBEDDINGS, POOLED, TIME_IDS, ConditionInput
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.probed_network import meta_values
from ptqd_export.models.known_keys import check_keys
from ptqd_export.models.module_checks import check_finite
from ptqd_export.plan import ControlKind, ControlSection

CLASSES: Mapping[ControlKind, str] = {"controlnet": "ControlNetModel", "t2i_adapter": "T2IAdapter"}

GIVEN = (EMBEDDINGS, POOLED, TIME_IDS)
"""Conditions that pipelines give to a ControlNet too."""

FACTORS = (16, 8, 4, 2, 1)
"""Sides of a control image in sides of a state, from which the one is taken at which the residuals fit the network."""


class ControlNetAdapter(Adapter):
    """Calls a ControlNet with the network's own conditions and a control image, and returns all residuals of a row behind each other.

    Args:
        network: the ControlNet.
        conditions: conditions in the order in which they are given; the control image is the last.
        scale: factor of all residuals.
    """

    def __init__(self, network: nn.Module, conditions: tuple[str, ...], scale: float) -> None:
        super().__init__(network, conditions)
        self._scale = scale

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        named = dict(zip(self.conditions, conditions, strict=True))
        image, added = named.pop(CONTROL_IMAGE), {name: named.pop(name) for name in (POOLED, TIME_IDS) if name in named}
        nested = {"added_cond_kwargs": added} if added else {}
        down, mid = self.network(
            sample, timestep, controlnet_cond=image, conditioning_scale=self._scale, return_dict=False, **named, **nested
        )
        return torch.cat([one.flatten(1) for one in (*down, mid)], dim=1)


class AdapterModule(nn.Module):
    """Calls a T2I adapter with a control image, and returns all features of a row behind each other; those that it lacks are zeros.

    Args:
        network: the adapter.
        values: numbers in the residuals of one sample.
        scale: factor of all features.
    """

    conditions = (CONTROL_IMAGE,)

    def __init__(self, network: nn.Module, values: int, scale: float) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._values, self._scale = values, scale

    def forward(self, image: Tensor) -> Tensor:
        found = torch.cat([one.flatten(1) for one in self.network(image)], dim=1) * self._scale
        return torch.nn.functional.pad(found, (0, self._values - found.shape[1]))


class ModuleEngine(Engine):
    """Runs a module in PyTorch on the CPU."""

    def __init__(self, module: nn.Module, inputs: tuple[TensorSpec, ...], values: int) -> None:
        super().__init__("the control network", inputs, TensorSpec("out", np.dtype(np.float32), (values,)))
        self._module = module

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        with torch.no_grad():
            found: Tensor = self._module(*(torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs))
        return [found.numpy()]


def residuals_of(part: ControlPart, residuals: tuple[InputRecord, ...]) -> Control:
    """Return the residuals that a control network computes in PyTorch from the control images of the calibration."""
    specs = tuple(TensorSpec(one.name, np.dtype(np.float32), tuple(map(int, one.shape))) for one in part.inputs)
    values = sum(prod(one.shape) for one in residuals)
    return Control(residuals, ControlNetwork(ModuleEngine(part.module, specs, values), residuals, images_of(part.pixels)))


def load_control(section: ControlSection, folder: Path, declared: Declaration, texts: Mapping[str, tuple[int, ...]]) -> ControlPart | None:
    """Load the control network of a plan; None if the plan names none.

    Args:
        section: the plan's section.
        folder: folder to which its paths are relative.
        declared: the network, with its residuals.
        texts: shape of one sample of each condition.

    Raises:
        UsageError: there is no such network, it belongs to another model, or the control images do not fit it.
    """
    if section.path is None or section.images is None:
        return None
    place = DiffusersFolder(folder / section.path)
    _check_kind(place, section.kind)
    conditions = tuple(ConditionInput(one.name, one.dtype, texts[one.name]) for one in declared.inputs if one.name in GIVEN)
    shape, taken = _fitting(place, section, declared, conditions)
    network = place.load("")
    check_finite(network, "the control network")
    pictures = pictures_in(folder / section.images)
    levels = [np.moveaxis((picture_state(one, shape) + 1) * 127.5, 0, -1).round().astype(np.uint8) for one in pictures]
    module = _wrapped(network, section, declared, taken)
    files = (*sorted(place.path.glob("*.json")), *sorted(place.path.glob("*.safetensors")), *sorted(place.path.glob("*.bin")), *pictures)
    return ControlPart(module, taken, np.stack(levels), files)


def _check_kind(place: DiffusersFolder, kind: ControlKind) -> None:
    config = place.config("")
    found = str(config.get("_class_name"))
    if found != CLASSES[kind]:
        known = {name: one for one, name in CLASSES.items()}
        raise UsageError(
            "The control network is of another class.",
            found=f"{place.path}: {found}",
            expected=f'{CLASSES[kind]} for model.control.kind "{kind}"',
            mend=f'set model.control.kind to "{known[found]}"' if found in known else "give the folder of a ControlNet or a T2I adapter",
        )
    check_keys(place.path, found, config)


def _wrapped(network: nn.Module, section: ControlSection, declared: Declaration, taken: tuple[ConditionInput, ...]) -> nn.Module:
    if section.kind == "controlnet":
        names = tuple(one.name for one in taken if one.name not in (STATE, TIMESTEP))
        return ControlNetAdapter(network, names, section.scale)
    return AdapterModule(network, sum(prod(map(int, one.shape)) for one in declared.control), section.scale)


def _fitting(
    place: DiffusersFolder, section: ControlSection, declared: Declaration, conditions: tuple[ConditionInput, ...]
) -> tuple[tuple[int, int, int], tuple[ConditionInput, ...]]:
    """Return the shape of the control images and the inputs of the control network, after trying them on torch's `meta` device."""
    with torch.device("meta"):
        network = place.build("")
    config = place.complete_config("")
    channels, problem = int(config["conditioning_channels" if section.kind == "controlnet" else "in_channels"]), "residuals of other shapes"
    wanted = [list(one.shape) for one in declared.control]
    for factor in FACTORS:
        height, width = (factor * side for side in declared.sample_shape[1:])
        image = ConditionInput(CONTROL_IMAGE, "float32", (channels, height, width))
        state = (ConditionInput(STATE, "float32", declared.sample_shape), ConditionInput(TIMESTEP, "float32", ()))
        inputs = (*state, *conditions, image) if section.kind == "controlnet" else (image,)
        try:
            found = _residual_shapes(network, section, declared, inputs)
        except Exception as error:  # an operator may refuse shapes in any way
            problem = first_line(error)
            continue
        if found == wanted[: len(found)] and (section.kind == "t2i_adapter" or len(found) == len(wanted)):
            return (channels, height, width), inputs
    raise UsageError(
        "The control network belongs to another model.",
        found=f"{place.path}: {problem}",
        expected=f"residuals {', '.join(map(str, wanted))}",
        mend="give the control network that was trained for this model",
    )


def _residual_shapes(
    network: nn.Module, section: ControlSection, declared: Declaration, inputs: tuple[ConditionInput, ...]
) -> list[list[int]]:
    shapes: list[list[int]] = []
    hook = network.register_forward_hook(lambda _, __, out: shapes.extend(_listed(out)))
    try:
        with torch.no_grad():
            _wrapped(network, section, declared, inputs)(*map(meta_values, inputs))
    finally:
        hook.remove()
    return shapes


def _listed(out: Any) -> list[list[int]]:
    """Return the shapes of a ControlNet's residuals, (down, mid), or of a T2I adapter's features."""
    values = [*out[0], out[1]] if isinstance(out[0], list | tuple) else out
    return [list(one.shape[1:]) for one in values]
