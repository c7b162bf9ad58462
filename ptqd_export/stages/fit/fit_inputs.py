"""Provides a build's settings and networks for `calib.walk.fit`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calib.walk.chain_error import Pictured
from calib.walk.fit import FitNetworks, FitSettings
from calib.walk.policy import FixedPolicy, SnrPolicy
from calib.walk.reuse import ReuseSteps
from calib.walk.step_networks import Elsewhere
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.image_decoder import Decoder
from ptqd_export.measuring.judged_pictures import pictured_by
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, all_graphs, network_graphs
from ptqd_export.stages.network.decoder_files import decoder_record


def fit_settings(context: BuildContext) -> FitSettings:
    """Return the fit settings of the plan. For a budget, they are those of the first fit, where the paper's rule chooses precisions."""
    plan, listed = context.plan, context.plan.steps.precisions
    candidates = tuple(precision.name for precision in context.precisions)
    return FitSettings(
        sampler=plan.sampler.record.model_copy(update={"guidance": context.guidance}),
        noise_schedule=context.noise_schedule,
        mode=plan.correction.mode,
        variance=plan.correction.variance,
        parts=frozenset(plan.correction.parts),
        policy=plan.steps.policy,
        choose=SnrPolicy(candidates) if listed is None else FixedPolicy(context.everywhere(listed)),
        samples=context.samples,
        trajectory=plan.calibration.trajectory,
        batch_size=plan.calibration.batch_size,
        reuse=_reuse(context),
    )


def _reuse(context: BuildContext) -> ReuseSteps | None:
    """Return the steps of the plan that reuse features; None if none do, or a budget is still to choose them."""
    section, cut = context.plan.steps.reuse, context.cut
    if section is None or cut is None or context.plan.steps.policy == "budget":
        return None
    found = ReuseSteps(cut, section.of(context.table.steps), context.walked_precisions)
    return found.extrapolating(context.table.timestep) if section.extrapolate else found


def fit_networks(context: BuildContext, graphs: Mapping[str, Path], batch: int, at_cut: Sequence[str] = ()) -> FitNetworks:
    """Open the networks in this process for batches of `batch` samples, from the folders of the stages that made their graphs, and those
    of these names at a cut.
    """
    networks: dict[str, EngineDenoiser] = {name: context.network(network_graphs(graphs, name), batch) for name in graphs}
    for name in at_cut:
        networks[name] = context.network_at(graphs, name, batch)
    return FitNetworks(networks, FULL_PRECISION)


def judged_pictures(context: BuildContext, folder: Path | None) -> Pictured | None:
    """Open what `auto` judges end samples by: the decoder in this folder, if there is one."""
    record = decoder_record(folder)
    if folder is None or record is None:
        return pictured_by(Decoder(), context.model.sample_shape)
    engine = context.measuring_beside(record.batch).open(folder / record.file, record.batch)
    return pictured_by(Decoder(engine, record.batch, record.image_shape, record.tile), record.image_shape)


@contextlib.contextmanager
def walked_networks(context: BuildContext, graphs: Mapping[str, Path], at_cut: Sequence[str] = ()) -> Iterator[FitNetworks]:
    """Open the networks of a walk in this process or, during the `with` block, on the cluster."""
    if context.elsewhere is None:
        yield fit_networks(context, graphs, context.plan.calibration.batch_size, at_cut)
        return
    names = (*graphs, *at_cut)
    with context.elsewhere(context, {name: all_graphs(graphs, name) for name in names}) as evaluator:
        yield FitNetworks({name: Elsewhere(name) for name in names}, FULL_PRECISION, evaluator)
