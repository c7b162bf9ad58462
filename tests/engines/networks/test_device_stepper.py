"""The state on the device takes the host's very steps: the kernels' source, compiled for the host, against `HostStepper`, bit by bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.backends.tensorrt.device.update_kernel import UpdateKernels, _compile
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine
from engines.bundle.bundle import Bundle
from engines.chain.finite import NotFiniteError
from engines.chain.late_start import LateStart
from engines.chain.noise import NoiseSource
from engines.chain.origin import Origin
from engines.chain.sampling import Chain
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.errors import MissingBackendError
from engines.networks.conditioning import class_labels
from engines.networks.cut_engines import CutEngines
from engines.networks.device_stepper import SETS, DeviceStepper, _Pinned
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.grouped_engine import GroupedEngine
from engines.samplers import SAMPLERS, NoiseSchedule, compile_sampler
from engines.samplers.table import TableStep
from tests.conftest import NOISE_SCHEDULE
from tests.emulated_device.emulated_device import EmulatedDevice

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

NOISE = NoiseSource(5, (1, 8, 8))
SAMPLES = np.array([3, 1, 4], dtype=np.int64)
ROWS = np.array([0, 2, 1], dtype=np.int64)
ORDER = ("w4a8", "w4a8", "fp32", "w4a8")


@pytest.fixture
def denoisers(open_engine: Callable[..., TensorRtEngine]) -> dict[str, EngineDenoiser]:
    engines = {"w4a8": open_engine("double"), "fp32": open_engine("negate")}
    return {name: EngineDenoiser(engine, class_labels(3, 3), guided=True) for name, engine in engines.items()}


@pytest.fixture
def schedule(tiny: TinyBundle) -> Schedule:
    whole = Bundle.open(tiny.folder).schedule()
    steps = (step.model_copy(update={"precision": name, "input_scale": 0.3}) for step, name in zip(whole.steps, ORDER, strict=True))
    return whole.model_copy(update={"steps": tuple(steps)})


def with_history(schedule: Schedule, *coefficients: float, clip: float | None = None) -> Schedule:
    steps = (step.model_copy(update={"history_coeffs": coefficients, "clip": clip}) for step in schedule.steps)
    return schedule.model_copy(update={"steps": tuple(steps)})


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(
    "history", [(), (0.5,), (0.4, -0.2), (0.3, -0.2, 0.1), (0.3, -0.2, 0.1, 0.05), (0.3, -0.2, 0.1, 0.0, 0.05)], ids=len
)
@pytest.mark.parametrize("clip", [None, 1.5])
def test_steps_on_the_device_are_those_of_the_host_bit_by_bit(
    denoisers: Any, schedule: Schedule, kernels: UpdateKernels, history: tuple[float, ...], clip: float | None, corrected: bool
) -> None:
    chain = Chain(with_history(schedule, *history, clip=clip), denoisers, corrected=corrected, guidance=2.5)
    on_host = chain.sample(NOISE, SAMPLES, ROWS)
    on_device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS)
    np.testing.assert_array_equal(on_device, on_host)
    assert abs(on_host).max() > 0.1


def test_a_chain_starts_from_an_image_on_the_device_too(denoisers: Any, schedule: Schedule, kernels: UpdateKernels) -> None:
    late, clean = LateStart.of(schedule, NOISE_SCHEDULE, 0.5), np.ones((1, 1, 8, 8), dtype=np.float32)
    chain = Chain(late.schedule, denoisers, levels=late.levels, origin=Origin(late.levels, lambda _: clean))
    on_device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS)
    np.testing.assert_array_equal(on_device, chain.sample(NOISE, SAMPLES, ROWS))
    assert np.abs(on_device - replace(chain, origin=None).sample(NOISE, SAMPLES, ROWS)).max() > 0.01


def test_groups_of_steps_run_on_their_own_engines_bit_by_bit(
    open_engine: Callable[..., TensorRtEngine], schedule: Schedule, kernels: UpdateKernels
) -> None:
    """The middle of the chain divides the groups; a chain without groups differs from it."""
    first, second = open_engine("double"), open_engine("negate")
    below = (schedule.steps[1].timestep + schedule.steps[2].timestep) / 2
    of = partial(EngineDenoiser, conditioning=class_labels(3, 3), guided=True)
    chain = Chain(schedule, {"w4a8": of(GroupedEngine([(math.inf, first), (below, second)]))}, "w4a8")
    on_device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS)
    np.testing.assert_array_equal(on_device, chain.sample(NOISE, SAMPLES, ROWS))
    alone = replace(chain, denoisers={"w4a8": of(first)}).sample(NOISE, SAMPLES, ROWS)
    assert np.abs(on_device - alone).max() > 0.1


def test_features_are_reused_on_the_device_bit_by_bit_and_never_copied(
    open_engine: Callable[..., TensorRtEngine], schedule: Schedule, kernels: UpdateKernels, emulated: EmulatedDevice
) -> None:
    """The second and third of four steps take the first one's features."""
    reusing = EngineDenoiser(open_engine("reuse"), class_labels(3, 3), guided=True)
    cut = CutEngines(open_engine("full"), class_labels(3, 3), guided=True, reusing=reusing)
    steps = [step.model_copy(update={"precision": "w4a8", "reuse": "cut" if step.step in (1, 2) else None}) for step in schedule.steps]
    chain = Chain(schedule.model_copy(update={"steps": tuple(steps)}), {"w4a8+cut": cut}, corrected=False)
    device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels))
    on_host = chain.sample(NOISE, SAMPLES, ROWS)
    np.testing.assert_array_equal(device.sample(NOISE, SAMPLES, ROWS), on_host)
    calls, copies = emulated.cuda.calls, []
    for one in (device, replace(device, schedule=schedule, precision="w4a8", denoisers={"w4a8": cut})):
        one.sample(NOISE, SAMPLES, ROWS)
        begin = len(calls)
        one.sample(NOISE, SAMPLES, ROWS)
        copies.append(calls[begin:].count("cudaMemcpyAsync"))
    assert copies[0] == copies[1], "as many as in a chain that reuses nothing"
    whole = replace(chain, schedule=schedule, precision="w4a8", denoisers={"w4a8": cut}).sample(NOISE, SAMPLES, ROWS)
    assert np.abs(whole - on_host).max() > 0.1


def random_schedule(sampler: str, seed: int) -> Schedule:
    """A chain of a sampler with random corrections, clipped where the sampler clips; odd steps are random rows of its table."""
    rng, traits = np.random.default_rng(seed), SAMPLERS[sampler]
    trained = NoiseSchedule(prediction_type=traits.predictions[0], clip_sample=traits.clips, clip_sample_range=1.5)
    eta = float(rng.uniform()) if traits.any_eta else traits.eta
    table = compile_sampler(sampler, 8, eta, trained)
    rows = [table.step(i if i % 2 == 0 else int(rng.integers(table.steps))) for i in range(table.steps)]

    def correction(row: TableStep) -> Correction:
        gain, offset, state_gain = (tuple(rng.normal(mean, 0.3, 1).tolist()) for mean in (1, 0, 0))
        sigma = row.sigma * float(rng.uniform())
        return Correction(
            gain=gain, offset=offset, state_gain=state_gain, sigma_corrected=sigma, residual_variance=0.1, unabsorbed_variance=0.0
        )

    steps = [
        Step(
            step=i,
            precision=str(rng.choice(["w4a8", "fp32"])),
            corrections={name: correction(row) for name in ("w4a8", "fp32")},
            **{name: value for name, value in vars(row).items() if name in Step.model_fields},
        )
        for i, row in enumerate(rows)
    ]
    record = SamplerRecord(name=sampler, steps=8, eta=eta, guidance=float(rng.uniform(0.5, 8)))
    fitted = CorrectionRecord(mode="joint", variance="schedule")
    return Schedule(sampler=record, correction=fitted, policy="fixed", init_sigma=table.init_sigma, steps=tuple(steps))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_random_steps_of_every_sampler_are_the_one_step_bit_by_bit(denoisers: Any, kernels: UpdateKernels, sampler: str, seed: int) -> None:
    chain = Chain(random_schedule(sampler, seed), denoisers)
    on_host = chain.sample(NOISE, SAMPLES, ROWS)
    on_device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS)
    np.testing.assert_array_equal(on_device, on_host)
    assert np.isfinite(on_host).all()
    assert abs(on_host).max() > 0.1


def test_networks_without_guidance_and_batches_of_several_sizes(denoisers: Any, schedule: Schedule, kernels: UpdateKernels) -> None:
    unguided = {name: replace(denoiser, guided=False) for name, denoiser in denoisers.items()}
    chain = Chain(with_history(schedule, 0.4, -0.2), unguided, guidance=1.0)
    device = replace(chain, stepper=partial(DeviceStepper, kernels=kernels))
    for samples in (SAMPLES, SAMPLES[:1], np.arange(8)):
        rows = samples % 3
        np.testing.assert_array_equal(device.sample(NOISE, samples, rows), chain.sample(NOISE, samples, rows))


def test_only_the_first_state_noise_and_a_few_numbers_go_up_and_one_state_and_flags_come_down(
    denoisers: Any, schedule: Schedule, kernels: UpdateKernels, emulated: EmulatedDevice
) -> None:
    cuda = emulated.cuda
    chain = Chain(schedule, denoisers, "fp32", stepper=partial(DeviceStepper, kernels=kernels))
    chain.sample(NOISE, SAMPLES, ROWS)
    before = cuda.calls.count("cudaMemcpyAsync")
    chain.sample(NOISE, SAMPLES, ROWS)
    noisy = sum(step.corrections["fp32"].sigma_corrected > 0 for step in schedule.steps)
    numbers = 4 * len(schedule.steps) + 1  # gain, offset, state gain and timestep at every step, and the labels once
    assert cuda.calls.count("cudaMemcpyAsync") - before == 2 + numbers + noisy + len(schedule.steps) + 1


@pytest.mark.parametrize("reuses", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_device_never_waits_for_the_host_between_the_first_and_the_last_step(
    open_engine: Callable[..., TensorRtEngine], kernels: UpdateKernels, emulated: EmulatedDevice, sampler: str, reuses: bool
) -> None:
    """A step waits for the one before last alone, and whatever the device does meanwhile: it always has a step to go on with."""
    reusing = EngineDenoiser(open_engine("reuse"), class_labels(3, 3), guided=True)
    cut = CutEngines(open_engine("full"), class_labels(3, 3), guided=True, reusing=reusing)
    schedule = random_schedule(sampler, 0)
    if reuses:
        steps = [step.model_copy(update={"precision": "w4a8", "reuse": "cut" if step.step % 3 else None}) for step in schedule.steps]
        schedule = schedule.model_copy(update={"steps": tuple(steps)})
        chain = Chain(schedule, {"w4a8+cut": cut}, corrected=False)
    else:
        chain = Chain(schedule, {"w4a8": cut, "fp32": EngineDenoiser(open_engine("negate"), class_labels(3, 3), guided=True)})
    cuda, taken = emulated.cuda, list[int]()
    chain = replace(chain, stepper=partial(DeviceStepper, kernels=kernels))
    for _ in range(2):  # the engines' first runs come before
        begin = len(cuda.calls)
        taken.clear()
        chain.sample(NOISE, SAMPLES, ROWS, lambda: taken.append(len(cuda.calls)))
    inside = Counter(cuda.calls[taken[0] : taken[-1]])
    assert not inside.keys() & {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMalloc", "cudaMallocHost", "cudaFree"}
    assert inside["cudaEventSynchronize"] == len(schedule.steps) - SETS, "the first steps of the sets wait for nothing"
    assert not [place for place in cuda.starved if taken[0] <= place < taken[-1]]
    assert Counter(cuda.calls[begin:])["cudaStreamSynchronize"] == 4  # two before the state goes up, the labels, and the last state


def test_an_array_that_is_reused_too_early_is_seen(
    denoisers: Any, schedule: Schedule, kernels: UpdateKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its wait, a step would overwrite noise that the device has not read yet."""
    chain = Chain(schedule, denoisers, "fp32")
    with monkeypatch.context() as patch:
        patch.setattr(_Pinned, "wait", lambda *_: None)
        wrong = replace(chain, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS)
    assert np.abs(wrong - chain.sample(NOISE, SAMPLES, ROWS)).max() > 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_output_that_is_not_finite_is_an_error_even_where_clipping_hides_it(
    emulated: EmulatedDevice, denoisers: Any, schedule: Schedule, kernels: UpdateKernels, value: float
) -> None:
    emulated.tensorrt.engines[0].spoil(value)
    hidden = with_history(schedule, 1.0, clip=1.0)
    steps = (step.model_copy(update={"out_coeff": 0.0}) for step in hidden.steps)
    chain = Chain(hidden.model_copy(update={"steps": tuple(steps)}), denoisers, "w4a8", stepper=partial(DeviceStepper, kernels=kernels))
    first = schedule.steps[0].timestep
    with pytest.raises(NotFiniteError, match=rf"output is not finite(?s:.*)from w4a8 at step 0, timestep {first:g}\n"):
        chain.sample(NOISE, SAMPLES, ROWS)


def test_chain_stops_two_steps_after_the_one_that_it_names(
    emulated: EmulatedDevice, denoisers: Any, schedule: Schedule, kernels: UpdateKernels
) -> None:
    emulated.tensorrt.engines[0].spoil(math.nan)  # w4a8 takes the first steps
    taken = []
    with pytest.raises(NotFiniteError, match=rf"from w4a8 at step 0, timestep {schedule.steps[0].timestep:g}\n"):
        Chain(schedule, denoisers, stepper=partial(DeviceStepper, kernels=kernels)).sample(NOISE, SAMPLES, ROWS, lambda: taken.append(1))
    assert len(taken) == 2


def test_compiler_that_is_missing_is_a_missing_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")

    def absent() -> None:
        raise RuntimeError("Failed to dlopen libnvrtc")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", absent)
    with pytest.raises(MissingBackendError, match="run-time compiler is not installed"):
        _compile("8.9")
