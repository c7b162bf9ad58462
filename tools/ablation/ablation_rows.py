"""Define the rows of the ablation as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from calib.correction.correction_fit import Part
from calib.correction.proposals import AnyMode
from calib.correction.step_fit import Variance
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.asked_reuse import NONE
from ptqd_export.schedules.settings import Fit, ScheduleRequest

BOTH: tuple[Part, ...] = ("gain", "offset")


WITH_CHAIN: tuple[Part, ...] = (*BOTH, "chain")


@dataclass(frozen=True)
class Contender:
    """A correction and its label in the table; `mode`, `parts` and `variance` are fields of the plan's `correction` section.

    Attributes:
        fit: "moments" for a refit from what the setting's walk measured; "walk" for a correction that changes where its walk goes.
    """

    label: str
    mode: AnyMode
    parts: tuple[Part, ...] = BOTH
    variance: Variance = "none"
    fit: Fit = "moments"


@dataclass(frozen=True)
class Setting:
    """A sampler, and the corrections that are compared under it.

    Attributes:
        name: part of the rows' names.
        title: heading of the page's section.
        eta: the sampler's eta.
        contenders: the corrections, in the order of the table.
        paper, ours: labels of the paper's correction and of the plain joint one, which is walked and whose moments the others refit.
        sampler: the sampler, or None for the bundle's own.
    """

    name: str
    title: str
    eta: float
    contenders: tuple[Contender, ...]
    paper: str
    ours: str
    sampler: str | None = None


AUTO = "auto"
"""Label of the correction that a plan has by default."""

WITH_NOISE = (
    Contender("none", "none"),
    Contender("+ correlated", "ptqd", ("gain",)),
    Contender("+ bias", "ptqd"),
    Contender("+ variance", "ptqd", variance="schedule"),
    Contender("signed", "signed"),
    Contender("signed + variance", "signed", variance="schedule"),
    Contender("joint", "joint"),
    Contender("joint + variance", "joint", variance="schedule", fit="walk"),
    Contender("mmse + variance", "mmse", variance="schedule"),
    Contender("joint + chain + variance", "joint", WITH_CHAIN, "schedule", fit="walk"),
    Contender(AUTO, "auto", variance="schedule", fit="walk"),
)
"""The paper's correction, one part added per row, then ours."""

WITHOUT_NOISE = (
    Contender("none", "none"),
    Contender("+ correlated", "ptqd", ("gain",)),
    Contender("+ bias", "ptqd"),
    Contender("signed", "signed"),
    Contender("joint", "joint", fit="walk"),
    Contender("mmse", "mmse"),
    Contender("mmse + q-drift", "mmse", variance="q-drift", fit="walk"),
    Contender("joint + drift", "joint", variance="drift", fit="walk"),
    Contender("joint + chain", "joint", WITH_CHAIN, fit="walk"),
    Contender(AUTO, "auto", fit="walk"),
)
"""The same where no fresh noise is left to give up: what remains is taken out of the prediction, or out of the accumulated error."""

SHIFTED = Contender("joint + shift", "joint", variance="shift", fit="walk")
"""For DDIM alone: the remaining noise as a higher noise level."""

WITH_HISTORY = tuple(replace(contender, fit="walk") for contender in WITHOUT_NOISE)
"""For multistep samplers: moments do not tell what a step does that reads its history."""

SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("eta1", "eta 1", 1.0, WITH_NOISE, "+ variance", "joint + variance"),
        Setting("eta0", "eta 0", 0.0, (*WITHOUT_NOISE, SHIFTED), "+ bias", "joint"),
        Setting("2m", "DPM-Solver++ 2M", 0.0, WITH_HISTORY, "+ bias", "joint", sampler="dpm++2m"),
    )
}
"""By name. The first is the one that the mixtures of precisions are compared under."""


@dataclass(frozen=True)
class Row:
    """One chain to fit and sample.

    Attributes:
        label: label of the correction, or of the policy of a mixed chain.
        precision: precision of all steps, or None for a mixture.
        setting: name of the setting.
        request: request for the chain's schedule.
    """

    label: str
    precision: str | None
    setting: str
    request: ScheduleRequest

    @property
    def is_exact(self) -> bool:
        """Whether this is the chain that all others are compared with: full precision, every step computed."""
        return self.precision == FULL_PRECISION and self.request.reuse in (None, NONE)

    @property
    def name(self) -> str:
        """Name of the row's schedule and of its result file."""
        words = "-".join(word for word in self.label.replace("+", " plus ").split())
        return f"{self.precision or 'mixed'}-{self.setting}-{words}"


def full_precision_row(setting: Setting) -> Row:
    """Return the full-precision row, which all other rows of the setting are compared with."""
    exact = Contender("full precision", "none", fit="walk")
    request = replace(_request((FULL_PRECISION,), setting, exact), samples=1)
    return Row(exact.label, FULL_PRECISION, setting.name, request)


def uniform_rows(precision: str, setting: Setting) -> Iterator[Row]:
    """Yield the rows of one precision with every correction: the walk of our own first, because others are refitted from its moments."""
    ours_first = sorted(setting.contenders, key=lambda contender: contender.label != setting.ours)
    walked = Row(setting.ours, precision, setting.name, _request((precision,), setting, ours_first[0]))
    yield walked
    for contender in ours_first[1:]:
        request = _request((precision,), setting, contender)
        yield Row(contender.label, precision, setting.name, request if request.fit == "walk" else replace(request, base=walked.name))


def mixed_rows(chains: Mapping[str, tuple[str, ...]], setting: Setting) -> Iterator[Row]:
    """Yield one row per named mixture of precisions, each with our own correction on its own walk."""
    (ours,) = (contender for contender in setting.contenders if contender.label == setting.ours)
    for name, choice in chains.items():
        yield Row(name, None, setting.name, _request(choice, setting, ours))


def _request(precisions: tuple[str, ...], setting: Setting, contender: Contender) -> ScheduleRequest:
    return ScheduleRequest(
        sampler=setting.sampler,
        eta=setting.eta,
        policy="fixed",
        precisions=precisions,
        mode=contender.mode,
        parts=contender.parts,
        variance=contender.variance,
        fit=contender.fit,
    )
