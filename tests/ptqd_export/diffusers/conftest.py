"""A tiny unconditional diffusers model with its bundle, and a fixture that makes pipelines draw the run time's noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.networks.chain_choice import ChainChoice
from ptqd_export.plan import load_plan
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.stages.run_build import run_build
from tests.shared import shared_folder

SAMPLES = np.array([4, 0, 9])
STEPS = 10


@dataclass(frozen=True)
class PlainModel:
    """A diffusers folder and its bundle, with the schedules `default` (DDIM, eta 1, clipped) and `ddpm`."""

    folder: Path
    bundle: Path


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainModel:
    """An unconditional UNet2DModel for colour images. Tests must not modify it."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(2)
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    plan = {
        "model": {"path": "model"},
        "sampler": {"name": "ddim", "steps": STEPS, "eta": 1.0},
        "precisions": ["w8a8"],
        "steps": {"policy": "fixed", "precisions": ["w8a8"] * (STEPS - 1) + ["fp32"]},
        "calibration": {"samples": 16, "batch_size": 8, "activation_samples": 32},
        "correction": {"mode": "joint"},
        "target": {"name": "onnxruntime", "threads": 1, "benchmark_batch": 1},
        "output": "bundle",
    }

    def fill(folder: Path) -> None:
        DDIMPipeline(network, DDIMScheduler()).save_pretrained(folder / "model")
        (folder / "plan.json").write_text(json.dumps(plan))
        run_build(load_plan(folder / "plan.json"))
        add_schedule(folder / "bundle", "ddpm", ScheduleRequest(sampler="ddpm"))

    folder = shared_folder(tmp_path_factory, "plain", fill)
    return PlainModel(folder / "model", folder / "bundle")


@dataclass(frozen=True)
class OwnNoise:
    """The run time's noise for the samples 4, 0 and 9, given to pipelines in the order in which they draw noise."""

    source: NoiseSource

    def latents(self) -> Tensor:
        return torch.from_numpy(self.source.start(SAMPLES))

    def chain(self, bundle: Path, choice: ChainChoice, rows: NDArray[np.int64] | None = None) -> Tensor:
        """Return the final states that `ptqd-run sample` would produce."""
        opened = choice.open(Bundle.open(bundle), len(SAMPLES))
        return torch.from_numpy(opened.sample(self.source, SAMPLES, np.zeros_like(SAMPLES) if rows is None else rows))


@pytest.fixture
def own_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[..., OwnNoise]:
    """A function that makes pipelines draw the run time's noise.

    It patches the scheduler's module for the noise of the steps and, if `start` is given, that module for the start states.
    """

    def install(shape: tuple[int, ...], start: Any = None) -> OwnNoise:
        own, drawn = OwnNoise(NoiseSource(11, shape)), iter(range(1000))

        def of_step(wanted: torch.Size, **_: object) -> Tensor:
            z = torch.from_numpy(own.source.step(next(drawn), SAMPLES))
            return z.repeat(wanted[0] // len(z), *[1] * (z.ndim - 1))

        monkeypatch.setattr("ptqd_export.diffusers.scheduler.randn_tensor", of_step)
        if start is not None:
            monkeypatch.setattr(start, "randn_tensor", lambda *_, dtype, **__: own.latents().to(dtype))
        return own

    return install


@pytest.fixture
def quiet() -> Callable[[Any], Any]:
    """A function that turns off a pipeline's progress bar."""

    def hush(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return hush
