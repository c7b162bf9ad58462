"""Turns a user's request into the settings of a schedule to add, starting from a schedule of the bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from calib.correction.correction_fit import Part
from calib.correction.proposals import AnyMode
from calib.correction.step_fit import Variance
from calib.quantizers.rules.precision import Precision
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.fit import FitSettings
from calib.walk.policy import FixedPolicy, SnrPolicy
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.contract import first_problem
from engines.chain.features import precision_and_cut
from engines.chain.schedule import SamplerRecord, Schedule
from engines.errors import BundleError, UnknownNameError, UsageError
from engines.samplers import SAMPLERS
from ptqd_export.plan import CalibrationSection, Cost, Plan
from ptqd_export.schedules.asked_reuse import asked_reuse, cut_of_budget

Fit = Literal["moments", "walk"]


@dataclass(frozen=True)
class ScheduleRequest:
    """Changes to a schedule. None keeps a value. The values mean the same as in the plan.

    Attributes:
        base: name of the schedule to start from.
        policy: rule that chooses the precisions.
        precisions: for `fixed`, one precision for all steps or one per step; for `snr` and `budget`, the candidates.
        budget, cost: settings of the policy `budget`.
        psnr: instead of `budget`, the PSNR in dB that the cheapest chain is predicted to reach; takes the policy `budget`.
        samples: number of samples of a walk; None takes the plan's value, as for `seed` and `trajectory`.
        reuse: which steps reuse features, such as `skip_3:every=2`, `skip_3:steps=3-5-7` or `none`; `skip_3:auto` leaves it to a budget.
        fit: refit from stored moments, or fit on a new walk; None uses the moments if they suffice.
    """

    base: str = DEFAULT
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    policy: Literal["snr", "budget", "fixed"] | None = None
    precisions: tuple[str, ...] | None = None
    budget: float | None = None
    cost: Cost | None = None
    psnr: float | None = None
    mode: AnyMode | None = None
    parts: tuple[Part, ...] | None = None
    variance: Variance | None = None
    samples: int | None = None
    seed: int | None = None
    trajectory: Literal["quantized", "fp"] | None = None
    reuse: str | None = None
    fit: Fit | None = None

    @property
    def walk_changes(self) -> dict[str, object]:
        """Calibration settings that differ from the plan's, by field of the plan."""
        given = {"samples": self.samples, "seed": self.seed, "trajectory": self.trajectory}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Budget:
    """What to choose a chain for, and how cost is measured.

    Attributes:
        cost: unit of the cost.
        share: the most that the chain may cost relative to full precision; None for the cheapest chain that reaches `psnr`.
        psnr: PSNR in dB that the chain is predicted to reach.
    """

    cost: Cost
    share: float | None = None
    psnr: float | None = None


@dataclass(frozen=True, eq=False)
class ScheduleSettings:
    """Complete settings of a schedule to fit.

    Attributes:
        fit: settings of the fit.
        precisions: candidates by ascending bit operations for `snr` and for a budget that is not spent yet; otherwise one per step.
        threads: threads per engine, or None for all cores.
        budget: budget that is still to be spent, after a first fit with the policy `snr`.
        cut: cut at which the steps that the budget buys may reuse features; None if none may.
    """

    fit: FitSettings
    precisions: tuple[str, ...]
    threads: int | None
    budget: Budget | None = None
    cut: str | None = None

    def spent(self, networks: tuple[str, ...]) -> ScheduleSettings:
        """Return the settings with the chain that the budget bought: one network per step, a precision or one at the cut."""
        precisions = tuple(precision_and_cut(name)[0] for name in networks)
        return replace(self, fit=self.fit.spent(networks), precisions=precisions, budget=None, cut=None)


def resolve(request: ScheduleRequest, bundle: Bundle) -> ScheduleSettings:
    """Return the settings of the schedule that a request describes.

    Raises:
        UsageError: the request does not fit the bundle.
    """
    request = replace(request, policy="budget") if request.psnr is not None and request.policy is None else request
    base, plan, sampler = bundle.schedule(request.base), stored_plan(bundle), _sampler(request, bundle.schedule(request.base))
    table = sampler.table(bundle.manifest.model.noise_schedule)
    policy, budget = request.policy or base.policy, _budget(request, bundle)
    precisions = _precisions(request, policy, bundle, base, plan, table.steps)
    if request.policy is None and policy == "budget" and request.precisions is not None:
        policy = "fixed"
    calibration = plan.calibration.model_copy(update=request.walk_changes)
    fit = FitSettings(
        sampler=sampler,
        noise_schedule=bundle.manifest.model.noise_schedule,
        mode=request.mode or base.correction.mode,
        variance=request.variance or base.correction.variance,
        parts=frozenset(base.correction.parts if request.parts is None else request.parts),
        policy=policy,
        choose=SnrPolicy(precisions) if policy == "snr" or budget is not None else FixedPolicy(precisions),
        samples=calibration_samples(bundle, calibration),
        trajectory=calibration.trajectory,
        batch_size=calibration.batch_size,
        reuse=asked_reuse(request.reuse, base, bundle, precisions, table) if budget is None else None,
    )
    fit.check_steps()
    cut = None if budget is None else cut_of_budget(request.reuse, base, bundle, precisions)
    return ScheduleSettings(fit, precisions, plan.target.threads, budget, cut)


def calibration_samples(bundle: Bundle, calibration: CalibrationSection) -> CalibrationSamples:
    """Return the samples that a bundle's statistics are measured on."""
    model = bundle.manifest.model
    rows = None if model.conditioning is None else model.conditioning.rows
    return CalibrationSamples.draw(calibration.seed, model.sample_shape, rows, calibration.samples)


def stored_plan(bundle: Bundle) -> Plan:
    """Read the plan that a bundle was built from.

    Raises:
        BundleError: the stored plan does not match this version.
    """
    try:
        return Plan.model_validate_json(json.dumps(bundle.json("plan.json")))
    except ValidationError as error:
        raise BundleError(
            "The bundle's plan was written by another version.", found=f"plan.json: {first_problem(error)}", mend="build the bundle again"
        ) from error


def _sampler(request: ScheduleRequest, base: Schedule) -> SamplerRecord:
    """Return the sampler. If the request changes it without giving an eta, its own default eta applies, not that of the base schedule.

    Timesteps and noise levels that were chosen belong to one sampler and one number of steps.
    """
    was = base.sampler
    name = request.sampler or was.name
    eta = was.eta if name == was.name or name not in SAMPLERS else SAMPLERS[name].eta
    steps = was.steps if request.steps is None else request.steps
    same = (name, steps) == (was.name, was.steps)
    return SamplerRecord(
        name=name,
        steps=steps,
        eta=eta if request.eta is None else request.eta,
        guidance=was.guidance if request.guidance is None else request.guidance,
        timesteps=was.timesteps if same else None,
        sigmas=was.sigmas if same else None,
    )


def _budget(request: ScheduleRequest, bundle: Bundle) -> Budget | None:
    given = {"--budget": request.budget, "--psnr": request.psnr}
    named = [f"{option} {value:g}" for option, value in given.items() if value is not None]
    if (request.policy == "budget") != bool(named):
        raise UsageError(
            "The options --budget and --policy budget must be given together.",
            found=named[0] if named else f"--policy {request.policy}",
            expected="--policy budget with --budget SHARE or --psnr DB",
        )
    if len(named) > 1:
        raise UsageError("A chain is chosen for a cost or for a PSNR.", found=" and ".join(named), expected="one of them")
    if request.cost is not None and not named:
        raise UsageError(
            "A cost needs a budget.", found=f"--cost {request.cost}", expected="--policy budget with --budget SHARE or --psnr DB"
        )
    if request.psnr is not None and bundle.manifest.model.decoder is not None:
        raise UsageError(
            "The PSNR of pictures cannot be predicted for a latent model: the error is known of its latents.",
            found=named[0],
            expected="--budget SHARE, and then `ptqd-run evaluate` for the PSNR",
        )
    return Budget(request.cost or "bit_operations", request.budget, request.psnr) if named else None


def _precisions(request: ScheduleRequest, policy: str, bundle: Bundle, base: Schedule, plan: Plan, steps: int) -> tuple[str, ...]:
    known = bundle.manifest.precisions
    for name in request.precisions or ():
        if name not in known:
            raise UnknownNameError("The bundle has no engine of this precision.", found=name, known=known)
    if policy == "snr" or request.policy == "budget":
        return tuple(sorted(request.precisions or plan.precisions, key=lambda name: Precision.parse(name).cost_key))
    if request.precisions is None and base.policy == "snr":
        raise UsageError("The policy fixed needs precisions.", found="no --precisions", expected="one for all steps, or one per step")
    return _one_for_each_step(request.precisions or tuple(step.precision for step in base.steps), steps)


def _one_for_each_step(listed: tuple[str, ...], steps: int) -> tuple[str, ...]:
    if len(set(listed)) == 1:
        listed = listed[:1] * steps
    if len(listed) != steps:
        raise UsageError(
            "The number of precisions does not match the number of steps.",
            found=f"{len(listed)} precisions",
            expected=f"1, or {steps}",
            mend="use --precisions",
        )
    return listed
