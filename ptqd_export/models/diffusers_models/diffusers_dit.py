"""diffusers folders whose denoiser is a `DiTTransformer2DModel` (Peebles and Xie 2023)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ptqd_export.models.asked_size import refuse_size
from ptqd_export.models.base import Adapter, Declaration, ModelModules
from ptqd_export.models.conditions import class_input
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.checked_declaration import checked
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder
from ptqd_export.models.diffusers_models.diffusers_shapes import image_size, state_channels


class DiTAdapter(Adapter):
    """Calls a DiT and drops its learned variances, the second half of its output channels."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        (labels,) = conditions
        out: Tensor = self.network(sample, timestep=timestep, class_labels=labels, return_dict=False)[0]
        return out[:, : sample.shape[1]]


def declare(path: Path, size: tuple[int, int] | None = None) -> Declaration:
    """See `ptqd_export.models.base.Family`. The label after the last class means "no class"."""
    refuse_size(size, "its position embeddings are those of one grid of tokens")
    folder = DiffusersFolder(path)
    config = folder.config(folder.denoiser)
    classes = config["num_embeds_ada_norm"]
    channels = state_channels(config["in_channels"], config["out_channels"] or config["in_channels"])
    few = folder.few_steps()
    declared = Declaration(
        family=f"diffusers {folder.kind}",
        sample_shape=(channels, *image_size(config)),
        inputs=(class_input(classes + 1, null_class=classes),),
        noise_schedule=folder.noise_schedule,
        sampler=folder.sampler.name,
        notes=(*folder.notes, *few.notes),
        steps=few.steps,
        guidance=few.guidance,
    )
    return checked(folder, declared, DiTAdapter)


def load(path: Path, declared: Declaration) -> ModelModules:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    adapter = DiTAdapter(folder.load(folder.denoiser), tuple(one.name for one in declared.inputs))
    return ModelModules(adapter, load_decoder(folder))
