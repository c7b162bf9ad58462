"""The rows of the ablation, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from calib.correction.correction_fit import Mode, Part
from calib.correction.step_fit import Variance
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.settings import Fit, ScheduleRequest

BOTH: tuple[Part, ...] = ("gain", "offset")


@dataclass(frozen=True)
class Contender:
    """A correction under its name in the table; the words are those of the plan's `correction` section."""

    label: str
    mode: Mode
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
    ),
    0.0: (
        Contender("none", "none"),
        Contender("+ correlated", "ptqd", ("gain",)),
        Contender("+ bias", "ptqd"),
        Contender("signed", "signed"),
        Contender("joint", "joint"),
        Contender("mmse", "mmse"),
    ),
}
"""By eta: the paper's correction part by part, each row with what the rows above it have, then ours. Without fresh noise there is no
variance to calibrate."""

OURS: Mapping[float, str] = {1.0: "joint + variance", 0.0: "joint"}
"""The default correction, by eta. It is walked, and the others are refitted from the moments of its walk."""

SHIFTED = Contender("joint + shift", "joint", variance="shift")
"""What takes the place of the variance schedule where there is no fresh noise."""


@dataclass(frozen=True)
class Row:
    """One chain.

    Attributes:
        label: of the correction, or of the policy of a mixed chain.
        precision: that takes all steps, or None for a mixture.
        eta: of the sampler.
        request: its schedule.
    """

    label: str
    precision: str | None
    eta: float
    request: ScheduleRequest

    @property
    def name(self) -> str:
        """Of its schedule and of its file."""
        words = "-".join(word for word in self.label.replace("+", " plus ").split())
        return f"{self.precision or 'mixed'}-eta{self.eta:g}-{words}"


def full_precision_row(eta: float) -> Row:
    """What the others are held against."""
    request = ScheduleRequest(eta=eta, policy="fixed", precisions=(FULL_PRECISION,), mode="none", variance="none", samples=1, fit="walk")
    return Row("full precision", FULL_PRECISION, eta, request)


def uniform_rows(precision: str, eta: float) -> Iterator[Row]:
    """One precision throughout under every correction: one walk, and what follows from its moments."""
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
    """Mixtures of precisions by name, each corrected on its own walk."""
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
