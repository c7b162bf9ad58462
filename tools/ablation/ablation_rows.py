"""Define the rows of the ablation as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from calib.correction.correction_fit import Part
from calib.correction.proposals import AnyMode
from calib.correction.step_fit import Variance
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.settings import Fit, ScheduleRequest

BOTH: tuple[Part, ...] = ("gain", "offset")


@dataclass(frozen=True)
class Contender:
    """A correction and its label in the table; the other fields are those of the plan's `correction` section."""

    label: str
    mode: AnyMode
    parts: tuple[Part, ...] = BOTH
    variance: Variance = "none"


CONTENDERS: Mapping[float, tuple[Contender, ...]] = {
    1.0: (
        Contender("none", "none"),
        Contender("+ correlated", "ptqd", ("gain",)),
        Contender("+ bias", "ptqd"),
        Contender("+ variance", "ptqd", variance="schedule"),
        Contender("signed", "signed"),
        Contender("signed + variance", "signed", variance="schedule"),
        Contender("joint", "joint"),
        Contender("joint + variance", "joint", variance="schedule"),
        Contender("mmse + variance", "mmse", variance="schedule"),
        Contender("auto", "auto", variance="schedule"),
    ),
    0.0: (
        Contender("none", "none"),
        Contender("+ correlated", "ptqd", ("gain",)),
        Contender("+ bias", "ptqd"),
        Contender("signed", "signed"),
        Contender("joint", "joint"),
        Contender("mmse", "mmse"),
        Contender("auto", "auto"),
    ),
}
"""By eta: the paper's correction, one part added per row, then ours. With eta 0 there is no fresh noise, hence no variance to calibrate."""

OURS: Mapping[float, str] = {1.0: "joint + variance", 0.0: "joint"}
"""Label of the correction that is walked, by eta: that of the walk under `auto`. The others are refitted from its moments."""

SHIFTED = Contender("joint + shift", "joint", variance="shift")
"""Correction that replaces the variance schedule when there is no fresh noise."""


@dataclass(frozen=True)
class Row:
    """One chain to fit and sample.

    Attributes:
        label: label of the correction, or of the policy of a mixed chain.
        precision: precision of all steps, or None for a mixture.
        eta: the sampler's eta.
        request: request for the chain's schedule.
    """

    label: str
    precision: str | None
    eta: float
    request: ScheduleRequest

    @property
    def name(self) -> str:
        """Name of the row's schedule and of its result file."""
        words = "-".join(word for word in self.label.replace("+", " plus ").split())
        return f"{self.precision or 'mixed'}-eta{self.eta:g}-{words}"


def full_precision_row(eta: float) -> Row:
    """Return the full-precision row, which all other rows are compared with."""
    request = ScheduleRequest(eta=eta, policy="fixed", precisions=(FULL_PRECISION,), mode="none", variance="none", samples=1, fit="walk")
    return Row("full precision", FULL_PRECISION, eta, request)


def uniform_rows(precision: str, eta: float) -> Iterator[Row]:
    """Yield the rows of one precision with every correction: the walked one, then the corrections refitted from its moments.

    With eta 0, a second walk with the shift correction follows.
    """
    (ours,) = (contender for contender in CONTENDERS[eta] if contender.label == OURS[eta])
    walked = Row(ours.label, precision, eta, _request(precision, eta, ours, fit="walk"))
    yield walked
    for contender in CONTENDERS[eta]:
        if contender is ours:
            continue
        yield Row(contender.label, precision, eta, replace(_request(precision, eta, contender, fit="moments"), base=walked.name))
    if eta == 0:
        yield Row(SHIFTED.label, precision, eta, _request(precision, eta, SHIFTED, fit="walk"))


def mixed_rows(chains: Mapping[str, tuple[str, ...]], eta: float) -> Iterator[Row]:
    """Yield one row per named mixture of precisions, each corrected on its own walk."""
    for name, choice in chains.items():
        request = ScheduleRequest(eta=eta, policy="fixed", precisions=choice, mode="joint", variance="schedule", fit="walk")
        yield Row(name, None, eta, request)


def _request(precision: str, eta: float, contender: Contender, fit: Fit) -> ScheduleRequest:
    return ScheduleRequest(
        eta=eta,
        policy="fixed",
        precisions=(precision,),
        mode=contender.mode,
        parts=contender.parts,
        variance=contender.variance,
        fit=fit,
    )
