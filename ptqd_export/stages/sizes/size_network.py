"""The networks of a build at one size of the images: full precision, the first stage, states, and the network to quantize."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ptqd_export.models.load import digest_of
from ptqd_export.stages import stage_room as room
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.decoder_files import decoder_record
from ptqd_export.stages.network.decoding import make_decoder, make_preview, preview_tile, tile_of
from ptqd_export.stages.network.encoding import make_encoder
from ptqd_export.stages.network.preparation import make_preparation
from ptqd_export.stages.network.states import make_states
from ptqd_export.stages.stage_cache import StageCache


@dataclass(frozen=True)
class SizeNetwork:
    """The networks of a build at one size.

    Attributes:
        context, cache: context of the build at this size, and its stages.
        traced: folder of the full-precision graph.
        decoder, encoder, preview: folders of the graphs of the first stage and of the decoder of previews, or None.
        states: folder of the states.
        prepared: folder of the network to quantize.
    """

    context: BuildContext
    cache: StageCache
    traced: Path
    decoder: Path | None
    encoder: Path | None
    preview: Path | None
    states: Path
    prepared: Path


def make_network(context: BuildContext, cache: StageCache, traced: Path, first: SizeNetwork | None = None) -> SizeNetwork:
    """Make what precisions are made from. A further size takes the changed weights of the `first`."""
    decoder = _decoder(context, cache)
    encoder, preview = _encoder(context, cache, decoder), _preview(context, cache)
    states = _states(context, cache, traced)
    return SizeNetwork(context, cache, traced, decoder, encoder, preview, states, _prepared(context, cache, traced, states, first))


def source_of(context: BuildContext) -> dict[str, Any]:
    """Inputs of the stages that make full-precision graphs."""
    size = {} if context.size is None else {"size": context.size}
    return {"model": context.fingerprint, "placement": context.placement.name, **size}


def computed_in(context: BuildContext) -> dict[str, str]:
    """Inputs of the stages that make decoders."""
    return {} if context.high_precision == "fp32" else {"high_precision": context.high_precision}


def device_of(context: BuildContext) -> dict[str, str]:
    """Inputs of the stages that run PyTorch."""
    return context.plan.calibration.model_dump(include={"device", "dtype"})


def _decoder(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with the decoder's graph, or None if the states are images."""
    if context.model.decoder is None:
        return None
    tile = tile_of(context)
    inputs = {**source_of(context), **computed_in(context), **({} if tile is None else {"tile": tile.model_dump()})}
    return cache.run("decoder", inputs, partial(make_decoder, context), room=room.decoder(context))


def _encoder(context: BuildContext, cache: StageCache, decoder: Path | None) -> Path | None:
    """Return the folder with the encoder's graph, or None if the plan asks for none."""
    record = decoder_record(decoder)
    if context.model.encoder is None or record is None or decoder is None:
        return None
    make = partial(make_encoder, context, record)
    return cache.run("encoder", {**source_of(context), "decoder": decoder.name}, make, room=room.encoder(context))


def _preview(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with the graph of the decoder of previews, or None. It depends on nothing else of the model than its shapes."""
    part, tile = context.model.preview, preview_tile(context)
    if part is None:
        return None
    inputs: dict[str, Any] = {"files": digest_of(part.files), "placement": context.placement.name, "shape": context.model.sample_shape}
    inputs |= computed_in(context) | {"tile": None if tile is None else tile.model_dump()}
    return cache.run("preview", inputs, partial(make_preview, context), room=room.preview(context))


def _states(context: BuildContext, cache: StageCache, traced: Path) -> Path:
    """Return the folder with the states for activation ranges."""
    plan = context.plan
    drawn: dict[str, Any] = {"traced": traced.name, "measured": asdict(context.measured_with)}
    drawn |= {"sampler": plan.sampler.model_dump(), "null_class": plan.model.null_class}
    drawn |= plan.calibration.model_dump(include={"batch_size", "seed"}) | {"activation_samples": context.activation_samples}
    return cache.run("states", drawn, partial(make_states, context, traced), room=room.states(context))


def _prepared(context: BuildContext, cache: StageCache, traced: Path, states: Path, first: SizeNetwork | None) -> Path:
    """Return the folder with the network to quantize: that of the traced network if the plan asks for no preparation."""
    wanted = context.plan.quantization.model_dump(include={"split_concatenations", "channel_scaling", "rotation", "keep_float"})
    if not context.prepares:
        return traced
    inputs: dict[str, Any] = {"states": states.name, **wanted, **device_of(context)}
    inputs |= {} if first is None else {"traced": traced.name, "first": first.prepared.name}
    make = partial(make_preparation, context, traced, states, first=None if first is None else first.prepared)
    return cache.run("prepare", inputs, make, room=room.traced(context))
