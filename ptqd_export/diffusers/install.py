"""Put a bundle into a pipeline with one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from engines.backends.choice import Runtime
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.manifest import ModelRecord
from engines.errors import UsageError
from engines.networks.chain_choice import AUTO
from engines.networks.lora.lora_use import GivenLoras
from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.diffusers.network_config import network_config, transformer_family
from ptqd_export.diffusers.scheduler import PtqdScheduler

COMPARED = ("sample_size", "cross_attention_dim")
"""Keys of a network's configuration that a bundle must share, besides the number of parameters, where its family has no row of its own."""

NETWORKS = ("unet", "transformer")
"""Names of the denoising network in pipelines."""

Pipeline = TypeVar("Pipeline")


def use_bundle(
    pipe: Pipeline,
    path: str | PathLike[str],
    *,
    schedule: str = DEFAULT,
    precision: str = AUTO,
    correction: Literal["on", "off"] = "on",
    accept_guidance: bool = False,
    runtime: Runtime = "target",
    loras: GivenLoras = None,
) -> Pipeline:
    """Put the engines and the corrected schedule of a bundle into a pipeline, and return the pipeline.

    Args:
        pipe: a diffusers pipeline with a `unet` or a `transformer`, and a `scheduler`; both are replaced.
        path: folder of the bundle.
        schedule: name of the schedule.
        precision: one precision for every step, or `auto` for the schedule's choice.
        correction: `off` gives the plain quantized sampler.
        accept_guidance: allow a guidance scale at which the corrections were not fitted.
        runtime: runtime of the engines; `target` is the one that the bundle was built for.
        loras: LoRAs to put into the weights of the bundle: files with their scales, or files at scale 1. Text encoders stay
            the pipeline's own.

    Raises:
        UsageError: there is no such bundle, schedule or precision, a LoRA does not fit, or the pipeline's denoising network is missing or
            another than the bundle's. The pipeline stays unchanged.
        MissingBackendError: the runtime or its device is missing.
        PtqdError: a file of the bundle is damaged.
    """
    name = _network_name(pipe)
    _check_same_network(getattr(pipe, name), Bundle.open(Path(path)))
    denoiser = PtqdDenoiser.from_bundle(path, schedule=schedule, precision=precision, runtime=runtime, loras=loras)
    watched = None if accept_guidance else denoiser
    scheduler = PtqdScheduler.from_bundle(path, schedule=schedule, precision=precision, correction=correction, watched=watched)
    replaced: Any = getattr(pipe, name)
    if replaced is not None:
        nn.Module.to(denoiser, replaced.device, replaced.dtype)  # diffusers' own `to` warns at every cast
        _keep_size(denoiser, replaced)
    setattr(pipe, name, denoiser)
    pipe.scheduler = scheduler  # type: ignore[attr-defined]  # `_network_name` checked this
    return pipe


def _keep_size(denoiser: PtqdDenoiser, replaced: Any) -> None:
    """Let pipelines that choose a size by the one that a transformer was trained at still find that one, not the size of the bundle."""
    stated = getattr(replaced, "config", {}).get("sample_size")
    if denoiser.is_transformer and stated is not None:
        denoiser.register_to_config(sample_size=stated)


def _check_same_network(network: nn.Module | None, bundle: Bundle) -> None:
    """Refuse a bundle of a network of another architecture. Weights are not compared.

    A pipeline without a network, or with a bundle in it, takes any bundle.
    """
    if network is None or isinstance(network, PtqdDenoiser):
        return
    theirs, ours = {"parameters": bundle.manifest.model.parameters}, {"parameters": sum(one.numel() for one in network.parameters())}
    own = {"_class_name": type(network).__name__, **getattr(network, "config", {})}
    stated = _stated(bundle.manifest.model, own)
    theirs |= {name: of_bundle for name, (of_bundle, _) in stated.items()}
    ours |= {name: of_network for name, (_, of_network) in stated.items()}
    differing = [name for name in theirs if _flat(theirs[name]) != _flat(ours[name])]
    if differing:
        raise UsageError(
            "The bundle is of another network than the pipeline's.",
            found=f"a bundle of {bundle.manifest.model.family} with " + _listed(theirs, differing),
            expected=f"{type(network).__name__} with " + _listed(ours, differing),
            mend="use the bundle that was built from this pipeline's folder",
        )


def _stated(model: ModelRecord, own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what a bundle and the configuration of a network say about the same things, by name.

    The size of the samples of a transformer is the plan's, not the network's, so it is not compared.
    """
    family, config = transformer_family(model), network_config(model)
    if family is None:
        return {name: (config[name], own[name]) for name in COMPARED if own.get(name) is not None}
    of_bundle = model.family.removeprefix("diffusers ")
    if of_bundle != own["_class_name"]:
        return {"class": (of_bundle, own["_class_name"])}
    inputs = {} if model.conditioning is None else {record.name: record.shape for record in model.conditioning.inputs}
    widths = {one.name: one.shape[-1] for one in family.conditions(own) if one.shape and isinstance(one.shape[-1], int)}
    return {
        "channels": (model.sample_shape[0], family.channels(own)),
        **{name: (inputs.get(name, (None,))[-1], width) for name, width in widths.items()},
    }


def _flat(value: Any) -> Any:
    """One number for a size that is the same on both axes, which configurations write either way."""
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value


def _listed(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)


def _network_name(pipe: object) -> str:
    for name in NETWORKS:
        if hasattr(pipe, name) and hasattr(pipe, "scheduler"):
            return name
    raise UsageError(
        "The pipeline has no network that a bundle can replace.",
        found=type(pipe).__name__,
        expected="a pipeline with a scheduler, and a " + " or a ".join(NETWORKS),
    )
