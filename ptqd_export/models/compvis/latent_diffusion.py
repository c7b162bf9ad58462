"""The family of CompVis' `LatentDiffusion`: a checkpoint beside the YAML that the model was built from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from engines.errors import PtqdError
from engines.samplers.levels.alphas import alpha_bar
from ptqd_export.models.asked_size import refuse_size
from ptqd_export.models.base import Adapter, Declaration, DecoderModule, ModelModules
from ptqd_export.models.compvis.compvis_config import DiffusionConfig, VqConfig, read_config
from ptqd_export.models.compvis.compvis_unet import empty_unet, unet_links
from ptqd_export.models.compvis.first_stage import empty_first_stage, first_stage_links
from ptqd_export.models.compvis.links import fill, link, refuse_missing, refuse_unused, tensor_names
from ptqd_export.models.compvis.other_checkpoints import no_configuration
from ptqd_export.models.conditions import class_input
from ptqd_export.models.diffusers_models.diffusers_decoder import KlDecoder, VqDecoder
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter
from ptqd_export.models.tensors.checkpoint import read_tensors

UNET = "model.diffusion_model."
AVERAGED = "model_ema."
FIRST_STAGE = "first_stage_model."
CLASSES = "cond_stage_model."
CUMULATIVE = "alphas_cumprod"
SCALE = "scale_factor"

_SCHEDULE = frozenset(
    {
        "betas", CUMULATIVE, "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    }
)  # fmt: skip
"""Tables that follow from the betas. The schedule is computed here, and compared with the stored cumulative alphas."""

_TRAINING = (f"{FIRST_STAGE}loss.", "logvar", "lvlb_weights")
"""Prefixes of tensors that sampling does not use: discriminators, and weights of the loss."""

_SCHEDULE_TOLERANCE = 1e-5


class ClassEmbedder(nn.Module):
    """Maps labels [batch] int64 to a context of one learned vector each, [batch, 1, width]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width, device="meta")

    def forward(self, labels: Tensor) -> Tensor:
        context: Tensor = self.embedding(labels)[:, None]
        return context


class ClassConditionalUNet(nn.Module):
    """A U-Net with cross attention to the class, and its class embedder: one network whose condition is the label."""

    def __init__(self, unet: nn.Module, class_embedder: ClassEmbedder) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedder = class_embedder

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states=self.class_embedder(class_labels), return_dict=False)[0]
        return out


class ClassAdapter(Adapter):
    """Calls the network with its labels [batch] int64."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        (labels,) = conditions
        out: Tensor = self.network(sample, timestep, labels)
        return out


def declare(path: Path, size: tuple[int, int] | None = None) -> Declaration:
    """Describe the model from the YAML beside the checkpoint.

    Raises:
        UsageError: there is no YAML, or its model is not supported.
    """
    refuse_size(size, "its YAML states the size")
    config = read_config(find_config(path))
    classes = config.classes
    return Declaration(
        family="CompVis LatentDiffusion" + (" (averaged weights)" if config.use_ema else ""),
        sample_shape=(config.channels, config.image_size, config.image_size),
        inputs=() if classes is None else (class_input(classes.n_classes, classes.null_class),),
        noise_schedule=config.noise_schedule,
    )


def load(path: Path, declared: Declaration) -> ModelModules:
    """Load the checkpoint's weights into modules of diffusers. Float32 weights are mapped from the file, not copied.

    Raises:
        PtqdError: the checkpoint cannot be read, would run code, lacks a tensor, has an unknown one, or has one whose shape differs from
            the YAML.
    """
    config = read_config(find_config(path))
    tensors = read_tensors(path)
    _check_schedule(declared, tensors)
    unet, used_by_unet = _unet(config, tensors)
    decoder, used_by_decoder = _decoder(config, tensors)
    names = tuple(one.name for one in declared.inputs)
    adapter: Adapter = DiffusersAdapter(unet, names)
    used = used_by_unet | used_by_decoder | _SCHEDULE
    if config.classes is not None:
        embedder = ClassEmbedder(config.classes.n_classes, config.classes.embed_dim)
        used |= fill(embedder, [link("embedding", "embedding")], tensors, CLASSES.__add__)
        adapter = ClassAdapter(ClassConditionalUNet(unet, embedder), names)
    refuse_unused({name for name in tensors.keys() - used if not name.startswith(_TRAINING)})
    return ModelModules(adapter, decoder)


def find_config(checkpoint: Path) -> Path:
    """Return the YAML beside a checkpoint: the one of the same name, else the only one in the folder.

    Raises:
        UsageError: there is none.
        PtqdError: there is none, and the checkpoint cannot be read.
    """
    same = checkpoint.with_suffix(".yaml")
    if same.is_file():
        return same
    found = sorted(checkpoint.parent.glob("*.yaml"))
    if len(found) != 1:
        expected = f"{same.name}, or a single file of another name"
        raise no_configuration(checkpoint, expected, f"{len(found)} *.yaml files beside {checkpoint}")
    return found[0]


def _unet(config: DiffusionConfig, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, set[str]]:
    """Return the U-Net, with averaged weights if the configuration keeps them, and the keys of both sets of weights."""
    network = empty_unet(config.unet_config.params)
    links = unet_links(config.unet_config.params, network)
    if config.use_ema and not any(name.startswith(AVERAGED) for name in tensors):
        raise PtqdError(
            "The checkpoint lacks the averaged weights that its configuration keeps.",
            found=f"no {AVERAGED}*, although use_ema is true, which is its default",
            mend="if the weights in the file are already the averages, write use_ema: False into the YAML",
        )
    fill(network, links, tensors, averaged_key if config.use_ema else UNET.__add__)
    names = tensor_names(network, links)
    return network, {*map(UNET.__add__, names), *map(averaged_key, names), f"{AVERAGED}decay", f"{AVERAGED}num_updates"}


def averaged_key(name: str) -> str:
    """Return the key under which `LitEma` keeps the average of a U-Net tensor: names of buffers cannot contain dots."""
    return AVERAGED + f"{UNET.removeprefix('model.')}{name}".replace(".", "")


def _decoder(config: DiffusionConfig, tensors: Mapping[str, Tensor]) -> tuple[DecoderModule, set[str]]:
    first_stage = empty_first_stage(config.first_stage_config)
    used = fill(first_stage, first_stage_links(config.first_stage_config, first_stage), tensors, FIRST_STAGE.__add__)
    kind = VqDecoder if isinstance(config.first_stage_config, VqConfig) else KlDecoder
    if not config.scale_by_std:
        return kind(first_stage, config.scale_factor), used
    refuse_missing([SCALE], tensors)
    return kind(first_stage, float(tensors[SCALE])), used | {SCALE}


def _check_schedule(declared: Declaration, tensors: Mapping[str, Tensor]) -> None:
    """Check that checkpoint and YAML belong together. Those of different trainings can have the same shapes, but seldom the same betas.

    Raises:
        PtqdError: the stored cumulative alphas differ from those of the declared schedule.
    """
    if CUMULATIVE not in tensors:
        return
    stored = tensors[CUMULATIVE].double().numpy()
    computed = alpha_bar(declared.noise_schedule)
    if stored.shape != computed.shape or not np.allclose(stored, computed, rtol=_SCHEDULE_TOLERANCE, atol=1e-7):
        raise PtqdError(
            "The checkpoint's noise schedule differs from the one in its configuration.",
            found=f"cumulative alphas from {stored.flat[0]:.6f} to {stored.flat[-1]:.6f} in {stored.size} timesteps",
            expected=f"from {computed[0]:.6f} to {computed[-1]:.6f} in {computed.size}",
            mend="use the configuration that the checkpoint was trained with",
        )
