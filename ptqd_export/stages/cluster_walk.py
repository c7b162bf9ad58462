"""Runs the networks of a build's walk on a cluster."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

from calib.walk.step_networks import BatchEvaluator
from engines.cluster.session import Cluster
from engines.networks.grouped_engine import GroupGraphs
from ptqd_export.measuring.cluster_networks import ClusterTarget, NetworkOpener, evaluating_on
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext


@contextlib.contextmanager
def walking_on(cluster: Cluster, context: BuildContext, graphs: Mapping[str, Sequence[GroupGraphs]]) -> Iterator[BatchEvaluator]:
    """Evaluate the networks of the graphs, by name, on the cluster during the `with` block. The result equals that of one machine.

    Raises:
        MissingBackendError: Ray or the cluster is missing, or the cluster has too little room.
    """
    calibration, target = context.plan.calibration, context.plan.target
    on_worker = ClusterTarget(target.name, target.provider, target.high_precision)
    opener = NetworkOpener(on_worker, context.model.conditioning, context.guidance, calibration.batch_size, context.model.guidance_patch)
    batches = math.ceil(calibration.samples / calibration.batch_size)
    with evaluating_on(cluster, opener, graphs, FULL_PRECISION, batches) as evaluator:
        yield evaluator
