"""The options of every command that can work on a cluster."""

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
    help="Work on a Ray cluster; without an address RAY_ADDRESS, or this machine.",
)
CPUS = click.option(
    "--ray-cpus", type=click.IntRange(min=1), help="CPUs of a worker; there are as many workers as fit.  [default: as many as used here]"
)


def chosen_cluster(address: str | None, cpus: int | None) -> Cluster | None:
    """Where to work; None is here.

    Raises:
        UsageError: CPUs of workers, and no cluster.
    """
    from engines.cluster.session import Cluster
    from engines.errors import UsageError

    if address is None and cpus is not None:
        raise UsageError("Workers are those of a cluster.", found="--ray-cpus alone", expected="--ray too")
    return None if address is None else Cluster(address, cpus)
