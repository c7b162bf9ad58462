"""Masks and masked pictures that a network for inpainting is calibrated with."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from engines.apps.pictures.picture_files import mask_state, masked_state, pictures_in
from engines.arrays import Float32
from engines.errors import UsageError
from ptqd_export.models.base import Declaration, EncoderModule, ModelModules
from ptqd_export.models.conditions import IMAGE, ConditionInput
from ptqd_export.models.module_checks import image_shape
from ptqd_export.plan import InpaintSection


def of_prompts(declared: Declaration) -> tuple[ConditionInput, ...]:
    """Return the inputs that prompts give: all but the masks and masked pictures of a network for inpainting."""
    return tuple(one for one in declared.inputs if one.name != IMAGE) if declared.repaints else declared.inputs


def painted_images(
    section: InpaintSection | None, folder: Path, declared: Declaration, networks: ModelModules, encoder: EncoderModule | None
) -> tuple[Float32, tuple[Path, ...]]:
    """Return masks and latents of masked pictures [K, 1 + C, h, w], and the files that they were read from.

    Args:
        section: the plan's section; None repaints everything.
        folder: folder to which its paths are relative.
        declared: the network.
        networks: its modules.
        encoder: the encoder of its first stage.

    Raises:
        UsageError: a picture or mask does not fit the model, or the model has no first stage.
    """
    if encoder is None or networks.decoder is None:
        raise UsageError(
            "A network for inpainting with prompts needs its first stage.",
            found="no vae in the model's folder",
            expected="the folder of a whole pipeline",
            mend="prepare embeddings and images yourself, and name the file as model.conditions",
        )
    files: tuple[Path, ...] = ()
    shape, size = image_shape(networks.decoder, declared.sample_shape), declared.sample_shape[1:]
    if section is None:
        masks, pictures = np.ones((1, 1, *size), dtype=np.float32), np.zeros((1, *shape), dtype=np.float32)
    else:
        images, whites = pictures_in(folder / section.images), pictures_in(folder / section.masks)
        pairs = [*zip(images, islice(cycle(whites), len(images)), strict=True)]
        masks = np.stack([mask_state(mask, shape, size) for _, mask in pairs])
        pictures, files = np.stack([masked_state(picture, mask, shape) for picture, mask in pairs]), (*images, *whites)
    with torch.no_grad():
        latents = torch.cat([encoder(one[None]) for one in torch.from_numpy(pictures)]).numpy()
    return np.concatenate([masks, latents], axis=1), files
