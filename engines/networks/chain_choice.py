"""The chain of a bundle that the user chose, checked before any work begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from engines.backends.base import Backend
from engines.backends.choice import Runtime
from engines.backends.tensorrt.tensorrt_backend import TensorRtBackend
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize
from engines.chain.denoiser import Denoisers, effective_guidance, is_guided
from engines.chain.late_start import LateStart
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.chain.stepper import HostStepper, Stepper
from engines.errors import UnknownNameError, UsageError
from engines.networks.conditioning import Conditioning
from engines.networks.control import GivenControl
from engines.networks.device_stepper import DeviceStepper
from engines.networks.kept_engines import KeptEngines
from engines.networks.lora.lora_use import LoraUse

AUTO = "auto"


@dataclass(frozen=True)
class ChainChoice:
    """How to sample from a bundle.

    Attributes:
        schedule: name of the schedule.
        precision: precision of every step, or `auto` to follow the schedule.
        correction: `off` samples without the corrections, as a plain quantized sampler.
        guidance: guidance scale w; None uses the scale that the schedule was fitted at.
        accept_guidance: whether to allow a guidance scale that the corrections were not fitted at.
        runtime: runtime of the networks.
        update: where the steps are computed: on the host, or on the engines' device.
        threads: threads of a CPU runtime; None uses every core that the process may use.
        strength: share of the steps to take, for chains that start from images; None takes all of them, from noise.
        loras: LoRAs in the weights of the networks.
        size: height and width of the images in pixels; None takes the bundle's first. Whoever opens the bundle opens it at this size.
    """

    schedule: str = "default"
    precision: str = AUTO
    correction: Literal["on", "off"] = "on"
    guidance: float | None = None
    accept_guidance: bool = False
    runtime: Runtime = "target"
    update: Literal["host", "device"] = "host"
    threads: int | None = None
    strength: float | None = None
    loras: tuple[LoraUse, ...] = ()
    size: ImageSize | None = None

    @property
    def on_workers(self) -> ChainChoice:
        """The choice for the workers of a cluster, which share no measured times: the target in place of `auto`."""
        return replace(self, runtime="target") if self.runtime == "auto" else self

    def chosen(self, bundle: Bundle) -> Chain:
        """Return the chain without opening its engines, for checks that need none.

        Raises:
            UsageError: the schedule or precision is unknown, a shifted schedule does not correct this precision, the guidance is not the
                fitted one, or the schedule cannot start late.
        """
        schedule = bundle.schedule(self.schedule)
        check_precision(schedule, self.precision, corrected=self.correction == "on")
        precision = None if self.precision == AUTO else self.precision
        chain = Chain(schedule, {}, precision, corrected=self.correction == "on", guidance=self._guidance(schedule))
        if self.strength is None:
            return chain
        late = LateStart.of(schedule, bundle.manifest.model.noise_schedule, self.strength)
        return replace(chain, schedule=late.schedule, levels=late.levels)

    def open(
        self,
        bundle: Bundle,
        batch: int,
        conditioning: Conditioning | None = None,
        kept: KeptEngines | None = None,
        control: GivenControl | None = None,
    ) -> Chain:
        """Return the chain with its engines opened for batches of `batch` samples.

        Args:
            bundle: bundle that the engines come from.
            batch: samples per network call.
            conditioning: conditioning table to use instead of the bundle's own, or None.
            kept: engines of the bundle to use, with their own runtime and threads; None opens engines for this chain alone.
            control: what gives the residuals of a control network; see `EngineBank.on_chain`.

        Raises:
            UsageError: see `chosen`; or the steps cannot be computed on the device, or a LoRA does not fit.
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged, or the runtime refuses a graph.
        """
        chain = self.chosen(bundle)
        kept = kept or KeptEngines(bundle, self.runtime, self.threads)
        stepper = self._stepper(bundle, chain, kept.backend)
        return replace(chain, denoisers=kept.bank(chain, batch, conditioning, self.loras, control), stepper=stepper)

    def _stepper(self, bundle: Bundle, chain: Chain, backend: Backend) -> Callable[[Denoisers], Stepper]:
        if self.update == "host":
            return HostStepper
        if is_guided(chain.scale) and bundle.manifest.model.guidance_patch is not None:
            raise UsageError(
                "The device cannot guide this network: its guidance keeps the norm of the conditional output.",
                found=f"--update device with guidance {chain.scale:g}",
                expected="--update host, or guidance 1",
            )
        if bundle.manifest.model.control is not None:
            raise UsageError("`--update device` does not support control networks.", found="--update device", expected="--update host")
        if chain.cut is not None and chain.schedule.extrapolates:
            raise UsageError("`--update device` does not extrapolate features.", found="--update device", expected="--update host")
        if not isinstance(backend, TensorRtBackend):
            raise UsageError("Only TensorRT can compute the steps on the device.", found="--update device", expected="--update host")
        return partial(DeviceStepper, kernels=backend.update_kernels)

    def _guidance(self, schedule: Schedule) -> float:
        fitted = schedule.sampler.guidance
        asked = fitted if self.guidance is None else self.guidance
        if self.accept_guidance or effective_guidance(asked) == effective_guidance(fitted):
            return asked
        raise UsageError(
            "The corrections were fitted at another guidance scale.",
            found=f"--guidance {self.guidance:g}",
            expected=f"{fitted:g}, as in schedule {self.schedule}",
            mend="add a schedule with `ptqd-export schedule --guidance`, or pass --accept-guidance to use these corrections anyway",
        )


def check_precision(schedule: Schedule, precision: str, *, corrected: bool) -> None:
    """Check that a schedule can run at a precision, or at its own choice (`AUTO`).

    Raises:
        UsageError: the precision is unknown, or the schedule's corrections hold for others.
    """
    known = (AUTO, *schedule.precisions)
    if precision not in known:
        raise UnknownNameError("The schedule has no such precision.", found=precision, known=known)
    if precision != AUTO and corrected and not schedule.corrects(precision):
        own = sorted({step.precision for step in schedule.steps})
        raise UsageError(
            "The schedule's steps are shifted or corrected for the quantization noise of its own precisions.",
            found=f"precision {precision}",
            expected=f"precision {AUTO}, which uses {', '.join(own)}",
            mend="add a schedule for that precision with `ptqd-export schedule`, or turn the correction off",
        )
