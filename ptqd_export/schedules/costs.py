"""Costs of a step at each precision, for the policy `budget` of an added schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.bundle.bundle import Bundle
from engines.bundle.image_size import size_name
from engines.bundle.manifest import saved_all
from engines.errors import UsageError
from ptqd_export.plan import FULL_PRECISION, Cost
from ptqd_export.records.times_file import read_times, times_file


def costs_of(bundle: Bundle, candidates: Sequence[str], cost: Cost) -> dict[str, float]:
    """Return the cost of a step of each candidate, a precision or a network at a cut, relative to full precision.

    Raises:
        UsageError: the cost is time, and the bundle's engines have not been timed on this machine.
    """
    if cost == "bit_operations":
        return {name: 1 / saved_all(bundle.manifest.precisions, name) for name in candidates}
    times = _times(bundle)
    for name in (FULL_PRECISION, *candidates):
        if name not in times:
            raise UsageError(
                "An engine was not timed on this machine.", found=name, expected=" or ".join(times), mend="build the bundle again"
            )
    return {name: times[name] / times[FULL_PRECISION] for name in candidates}


def check_cost(bundle: Bundle, cost: Cost) -> None:
    """Raises UsageError if the cost is time at a further size of the bundle: a build times the first."""
    if cost == "time" and not bundle.is_first_size:
        first, own = (size_name(one.image_size) for one in (bundle.whole.model, bundle.manifest.model))
        raise UsageError(
            "Steps are timed at a bundle's first size only.",
            found=f"--cost time with --size {own}",
            expected=f"--cost bit_operations, or the size {first}",
        )


def measured_times(bundle: Bundle) -> Mapping[str, float]:
    """Return the milliseconds per step that were measured on this machine at this size, by network; empty if none were."""
    path = times_file(bundle.folder)
    return read_times(path).milliseconds_a_step if path.is_file() and bundle.is_first_size else {}


def _times(bundle: Bundle) -> Mapping[str, float]:
    times = measured_times(bundle)
    if not times:
        raise UsageError(
            "The bundle's engines were not timed on this machine.",
            found=f"no {times_file(bundle.folder)}",
            expected="the file that `ptqd-export build` writes",
            mend="build the bundle here, or use --cost bit_operations",
        )
    return times
