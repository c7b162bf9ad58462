"""Options of every command that can run on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from engines.cluster.session import Cluster

ADDRESS = click.option(
    "--ray",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Run on a Ray cluster. Without an address: the one in RAY_ADDRESS, else this machine alone.",
)
CPUS = click.option(
    "--ray-cpus",
    type=click.IntRange(min=1),
    help="CPUs per worker; as many workers start as fit.  [default: 1 with a GPU, else all available cores]",
)


def chosen_cluster(address: str | None, cpus: int | None) -> Cluster | None:
    """Return the cluster to run on, or None to run in this process.

    Raises:
        UsageError: CPUs per worker are given without a cluster.
    """
    from engines.cluster.session import Cluster
    from engines.errors import UsageError

    if address is None and cpus is not None:
        raise UsageError("--ray-cpus needs a cluster.", found="--ray-cpus without --ray", expected="--ray as well")
    return None if address is None else Cluster(address, cpus)
