"""States with no, one and three spatial axes, from a function of the user's own to samples and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from engines.chain.noise import NoiseSource
from engines.cli import main as run
from ptqd_export.cli import main as export
from ptqd_export.models.factory import load_factory

MODULE = """
import torch
from torch import nn
from torch.nn.functional import silu

from ptqd_export.models.factory import FactoryModel, class_input


class Network(nn.Module):
    def __init__(self, channels, axes):
        super().__init__()
        layer = (lambda *widths: getattr(nn, f"Conv{axes}d")(*widths, 3, padding=1)) if axes else nn.Linear
        self.axes, self.time, self.label = axes, nn.Linear(1, 16), nn.Embedding(5, 16)
        self.first, self.body, self.last = layer(channels, 16), layer(16, 16), layer(16, channels)

    def forward(self, sample, timestep, label):
        condition = self.time(timestep[:, None] / 1000) + self.label(label)
        hidden = silu(self.first(sample) + condition.reshape(-1, 16, *[1] * self.axes))
        return self.last(silu(self.body(hidden)))


def of(*shape):
    torch.manual_seed(0)
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    network = Network(shape[0], len(shape) - 1)
    return FactoryModel(network=network, sample_shape=shape, noise_schedule=schedule, inputs=(class_input(5, null_class=4),))


def numbers():
    return of(12)


def audio():
    return of(2, 40)


def video():
    return of(3, 2, 6, 4)
"""
SHAPES = {"numbers": (12,), "audio": (2, 40), "video": (3, 2, 6, 4)}
STEPS, GUIDANCE, SEED, ROWS = 3, 1.5, 1, (3, 0)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind == "video" else pytest.mark.slow) for kind in SHAPES])
def test_states_of_any_number_of_axes_are_built_sampled_compared_and_reported(kind: str, tmp_path: Path) -> None:
    (tmp_path / "states_of.py").write_text(MODULE)
    plan = {
        "model": {"factory": f"states_of:{kind}"},
        "sampler": {"name": "ddim", "steps": STEPS, "eta": 1.0, "guidance": GUIDANCE},
        "precisions": ["w8a8"],
        "calibration": {"samples": 8, "batch_size": 8, "activation_samples": 16},
        "target": {"name": "onnxruntime", "threads": 1, "benchmark_batch": 2},
        "output": "bundle",
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    bundle = str(tmp_path / "bundle")
    options = ["--num", "2", "--seed", str(SEED), "--classes", ",".join(map(str, ROWS)), "--format", "npz"]
    commands = [
        (export, ["build", "--plan", str(tmp_path / "plan.json")]),
        (run, ["sample", bundle, *options, "--precision", "fp32", "--output", str(tmp_path / "fp32")]),
        (run, ["sample", bundle, *options, "--output", str(tmp_path / "w8a8")]),
        (run, ["compare", bundle, "--num", "2"]),
        (export, ["report", bundle]),
    ]
    for command, arguments in commands:
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
    exact, quantized = (np.load(tmp_path / name / "samples.npz")["samples"] for name in ("fp32", "w8a8"))
    np.testing.assert_allclose(exact, _by_diffusers(kind, tmp_path), atol=1e-4)
    assert 1e-4 < np.abs(quantized - exact).mean() / np.abs(exact).mean() < 0.2


@torch.no_grad()
def _by_diffusers(kind: str, folder: Path) -> NDArray[Any]:
    """Samples [2, *shape] of the network and the scheduler in torch, from the same noise."""
    network, noise, numbers = load_factory(f"states_of:{kind}", folder).adapter, NoiseSource(SEED, SHAPES[kind]), np.arange(2)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(noise.start(numbers))
    for step, t in enumerate(scheduler.timesteps):
        out, null = (network(x, t.float().expand(2), torch.as_tensor(labels)) for labels in (ROWS, [4, 4]))
        z = torch.from_numpy(noise.step(step, numbers))
        x = scheduler.step(null + GUIDANCE * (out - null), t, x, eta=1.0, variance_noise=z).prev_sample
    return x.numpy()
