"""Run a network of a configuration on shapes alone, before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from engines.errors import UsageError, first_line
from ptqd_export.models.base import Adapter, Declaration
from ptqd_export.models.conditions import IMAGE, ConditionInput
from ptqd_export.models.diffusers_folder import DiffusersFolder

BATCH = 2
FREE_SIZE = 8
"""Size that stands for one that the plan's table of conditions decides, such as the number of tokens."""


def check_network(
    folder: DiffusersFolder,
    declared: Declaration,
    adapter: Callable[[nn.Module, tuple[str, ...]], Adapter],
    size: tuple[int, int] | None = None,
) -> None:
    """Build the denoiser and call it on torch's `meta` device, where tensors have shapes and no values.

    Args:
        folder: folder of the model.
        declared: what its configuration declares.
        adapter: the family's adapter.
        size: height and width of the images in pixels, if the plan asks for one that fits the network's patches.

    Raises:
        UsageError: diffusers cannot build the network of this configuration, or the network does not take what is declared.
    """
    network = adapter(built_on_meta(folder), tuple(one.name for one in declared.inputs))
    problem = _problem(network, declared)
    if problem is None:
        return
    if size is not None:
        raise UsageError(
            "The network does not take images of this size.",
            found=f"{list(size)} pixels, samples {list(declared.sample_shape)}: {problem}",
            expected="a size for which the network has positions",
            mend="choose a smaller size",
        )
    inputs = ", ".join([f"samples {list(declared.sample_shape)}", *map(str, declared.inputs)])
    fitting = _fitting(declared, len(folder.config(folder.denoiser).get("block_out_channels") or (1,)))
    if fitting != declared and _problem(network, fitting) is None:
        raise UsageError(
            "The network does not take samples of the size in its configuration.",
            found=f"{folder.path / folder.denoiser}: {list(declared.sample_shape)}; {problem}",
            expected=f"such as {list(fitting.sample_shape)}: each level of the network halves height and width",
            mend="write the size at which the model was trained into sample_size of config.json",
        )
    raise UsageError(
        "The network does not take the inputs that its configuration describes.",
        found=f"{folder.path / folder.denoiser} with {inputs}: {problem}",
        expected="an output shaped like the samples",
        mend="copy the configuration that the model was saved with",
    )


def _problem(network: Adapter, declared: Declaration) -> str | None:
    """Return why the network does not map the declared inputs to an output shaped like the samples; None if it does."""
    sample = torch.empty(BATCH, *declared.sample_shape, device="meta")
    try:
        with torch.no_grad():
            out: Tensor = network(sample, torch.empty(BATCH, device="meta"), *map(meta_values, declared.inputs))
    except Exception as error:  # an operator may refuse shapes in any way
        return f"{type(error).__name__}: {first_line(error)}"
    return None if out.shape == sample.shape else f"the output is {list(out.shape[1:])}"


def _fitting(declared: Declaration, levels: int) -> Declaration:
    """Return the declaration with the next larger height and width that the levels of a U-Net halve without remainder."""
    step = 2 ** (levels - 1)
    channels, *sides = declared.sample_shape
    larger = tuple(-(-side // step) * step for side in sides)
    images = tuple(replace(one, shape=(one.shape[0], *larger)) if one.name == IMAGE else one for one in declared.inputs)
    return replace(declared, sample_shape=(channels, *larger), inputs=images)


def built_on_meta(folder: DiffusersFolder) -> nn.Module:
    """Return the denoiser without weights, on torch's `meta` device. Raises a UsageError if diffusers cannot build it."""
    try:
        with torch.device("meta"):
            return folder.build(folder.denoiser)
    except Exception as error:  # diffusers checks little, and fails in any way
        raise UsageError(
            "diffusers cannot build the network of this configuration.",
            found=f"{folder.path / folder.denoiser}: {type(error).__name__}: {first_line(error)}",
            expected=f"a configuration of {folder.kind}",
            mend="copy the configuration that the model was saved with",
        ) from error


def meta_values(one: ConditionInput) -> Tensor:
    """Return values of an input for a batch, without content."""
    shape = [FREE_SIZE if isinstance(size, str) else size for size in one.shape]
    return torch.empty(BATCH, *shape, dtype=torch.int64 if one.dtype == "int64" else torch.float32, device="meta")
