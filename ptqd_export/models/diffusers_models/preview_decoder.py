"""The small decoder that draws previews along a chain: an AutoencoderTiny, such as TAESD, trained on the latents of another first stage."""

from __future__ import annotations

from pathlib import Path

from engines.errors import UsageError
from ptqd_export.models.base import Declaration, DecoderModule, PreviewPart
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import KlDecoder, latent_channels, latent_scaling
from ptqd_export.models.known_keys import check_keys
from ptqd_export.models.module_checks import check_finite, check_images

TINY = "AutoencoderTiny"
MEND = "name the decoder that was trained for the latents of this model, or leave model.preview out of the plan"


def load_preview(path: Path, declared: Declaration) -> PreviewPart:
    """Load the decoder of previews. It takes the states as they are, whatever scaling the model's own first stage undoes.

    Args:
        path: its folder.
        declared: the denoiser.

    Raises:
        UsageError: it does not decode the states.
        PtqdError: the weights cannot be read.
    """
    place = DiffusersFolder(path)
    _check(place, declared)
    module = KlDecoder(place.load(""), *latent_scaling(place, ""))
    check_finite(module, "the decoder of previews")
    check_images(module, declared.sample_shape, MEND)
    return PreviewPart(module, tuple(sorted(path for path in place.path.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))))


def check_decoded(decoder: DecoderModule | None, declared: Declaration) -> None:
    """Refuse a decoder of previews for a model without a decoder."""
    if decoder is None:
        raise UsageError(
            "The states of this model are not decoded.",
            found=f"model.preview for {declared.family}",
            expected="a latent model with its first stage",
            mend="leave model.preview out of the plan",
        )


def _check(place: DiffusersFolder, declared: Declaration) -> None:
    """Check the decoder's configuration, before any weights are read."""
    config = place.config("")
    kind = str(config.get("_class_name"))
    if kind != TINY:
        raise UsageError("The decoder of previews is of another class.", found=f"{place.path}: {kind}", expected=TINY, mend=MEND)
    check_keys(place.path, kind, config)
    channels, wanted = latent_channels(place, ""), declared.sample_shape[0]
    if channels != wanted:
        raise UsageError(
            "The decoder of previews does not decode the samples.",
            found=f"{place.path}: latents of {channels} channels",
            expected=f"{wanted} channels, as the denoiser has",
            mend=MEND,
        )
