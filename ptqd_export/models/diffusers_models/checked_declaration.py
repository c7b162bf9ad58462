"""Hold what a diffusers folder declares against its configurations, before any weights are read."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from engines.errors import UsageError
from ptqd_export.models.base import Adapter, Declaration
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import find_first_stage, latent_channels
from ptqd_export.models.diffusers_models.probed_network import check_network
from ptqd_export.models.known_keys import check_keys


def checked(
    folder: DiffusersFolder,
    declared: Declaration,
    adapter: Callable[[nn.Module, tuple[str, ...]], Adapter],
    size: tuple[int, int] | None = None,
) -> Declaration:
    """Return the declaration of a folder's denoiser; `size` is the one that the plan asks for, see `check_network`.

    Raises:
        UsageError: a configuration has a key that its class does not know, the first stage is not supported, or the network cannot be built
            or does not take what is declared.
    """
    check_keys(folder.path / folder.denoiser, folder.kind, folder.config(folder.denoiser))
    _check_latents(folder, declared)
    check_network(folder, declared, adapter, size)
    return declared


def _check_latents(folder: DiffusersFolder, declared: Declaration) -> None:
    first_stage = find_first_stage(folder)
    if first_stage is None:
        return
    channels = latent_channels(folder, first_stage)
    if channels != declared.sample_shape[0]:
        raise UsageError(
            "The first stage does not decode the samples of this network.",
            found=f"{folder.path / first_stage} with {channels} channels, {folder.path / folder.denoiser} with {declared.sample_shape[0]}",
            expected="the same number of channels",
            mend="copy the first stage that the network was trained with",
        )
