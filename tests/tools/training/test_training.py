"""The training loop by the clock, its averaged weights, the drawing of batches, and the sampling that looks at a model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DModel

from tools.training.training import fit, guided, idle_machine_s, labelled, learning_rate, linear_betas, sample, train, write_log

MEAN, DEVIATION = 0.1, 0.2


class Linear(torch.nn.Module):
    """Predicts `weight * x`, from weight 0. Where the data are zero, the gradient's sign does not change and its length is clipped to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor | None) -> Any:
        assert x.shape[0] == timestep.shape[0]
        assert label is None
        return SimpleNamespace(sample=self.weight * x)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.01, 5e-4), (0.02, 1e-3), (0.5, 0.505e-3), (1.0, 1e-5), (1.5, 1e-5)],
)
def test_learning_rate_warms_up_and_follows_a_cosine(progress: float, expected: float) -> None:
    assert learning_rate(progress) == pytest.approx(expected, rel=1e-2, abs=1e-12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is looked at every 13 seconds."""
    ticks = itertools.count(0.0, 13.0)
    monkeypatch.setattr("tools.training.training.idle_machine_s", lambda: next(ticks))


@pytest.mark.usefixtures("clock")
def test_every_step_is_as_long_as_the_learning_rate() -> None:
    """Which is what Adam makes of a constant gradient."""
    torch.manual_seed(0)
    model = Linear()
    train(cast(UNet2DModel, model), linear_betas(), lambda count: (torch.zeros(count, 1, 4, 4), None), minutes=2, batch=256)
    rates = [learning_rate(13 * look / 120) for look in range(1, 10)]
    assert model.weight.item() == pytest.approx(sum(rates), rel=1e-3)


@pytest.mark.usefixtures("clock")
def test_a_loss_of_one_s_own_is_minimised() -> None:
    """The error's opposite: the weight goes the other way. It is given the states' cumulative alphas, which are the scheduler's."""
    scheduler, model = linear_betas(), Linear()
    seen: list[float] = []

    def opposite(error: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
        seen.extend(alpha_bar.tolist())
        return -error.square().mean()

    train(cast(UNet2DModel, model), scheduler, lambda count: (torch.zeros(count, 1, 4, 4), None), 1, 256, opposite)
    assert model.weight.item() < 0
    assert set(seen) <= set(scheduler.alphas_cumprod.tolist())
    assert min(seen) < 1e-3 < 0.99 < max(seen)


@pytest.mark.usefixtures("clock")
def test_training_ends_by_the_clock_and_logs_every_minute() -> None:
    torch.manual_seed(0)
    model = Linear()
    _, log = train(cast(UNet2DModel, model), linear_betas(), lambda count: (torch.zeros(count, 1, 4, 4), None), minutes=3.5, batch=256)
    assert [(row["minutes"], row["step"]) for row in log] == [(1.1, 5), (2.2, 10), (3.0, 14)]
    assert [row["loss"] for row in log] == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.usefixtures("clock")
def test_kept_weights_are_the_moving_average_of_the_trained_ones() -> None:
    torch.manual_seed(0)
    model = Linear()
    trained: list[float] = []

    def draw(count: int) -> tuple[torch.Tensor, None]:
        trained.append(model.weight.item())
        return torch.zeros(count, 1, 4, 4), None

    average, _ = train(cast(UNet2DModel, model), linear_betas(), draw, minutes=3, batch=8)
    expected = trained[0]
    for step, weight in enumerate([*trained[1:], model.weight.item()]):
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * weight
    assert model.weight.item() > 0
    assert average.weight.item() == pytest.approx(expected, rel=1e-5)
    assert not average.weight.requires_grad


@pytest.mark.usefixtures("clock")
def test_averaged_weights_are_kept_once_a_minute() -> None:
    """A training that is stopped has lost less than a minute; what is kept last is not yet what is returned."""
    model, kept = torch.nn.Linear(1, 1, bias=False), list[float]()
    average, log = fit(model, lambda: model.weight.sum(), minutes=3.5, keep=lambda kept_model: kept.append(kept_model.weight.item()))
    assert len(kept) == len(log) == 3
    assert kept[0] > kept[1] > kept[2] > average.weight.item() > model.weight.item()


def test_clock_of_an_idle_machine_is_processor_time_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.training.training.time.process_time", lambda: 12.0)
    monkeypatch.setattr("tools.training.training.torch.get_num_threads", lambda: 3)
    assert idle_machine_s() == 4.0


def test_a_tenth_of_the_drawn_images_have_lost_their_label() -> None:
    torch.manual_seed(0)
    classes = torch.arange(5)
    images, labels = labelled(classes.float().reshape(5, 1, 1, 1), classes, no_class=7)(20_000)
    assert labels is not None
    lost = labels == 7
    assert torch.equal(images.flatten()[~lost].long(), labels[~lost])
    assert lost.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert set(images.flatten()[lost].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_guided_prediction_goes_beyond_the_one_of_the_class(guidance: float) -> None:
    """A model that predicts `x + t + label`: of its guided prediction the label is `null + w (label - null)`."""

    def model(x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> Any:
        return SimpleNamespace(sample=x + (timestep + labels).reshape(-1, 1, 1, 1))

    labels, x = torch.tensor([1, 4]), torch.randn(2, 1, 3, 3)
    predicted = guided(cast(torch.nn.Module, model), labels, 9, guidance)(x, torch.tensor(100))
    expected = x + 100 + (9 + guidance * (labels - 9)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(predicted, expected)


def test_samples_of_an_exact_prediction_have_the_data_s_distribution() -> None:
    """The noise that the mean of N(MEAN, DEVIATION^2) data predicts is linear in the state; a thousand steps are then nearly exact."""
    scheduler = linear_betas()

    def exact(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        a = scheduler.alphas_cumprod[timestep]
        noise: torch.Tensor = (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)
        return noise

    torch.manual_seed(0)
    drawn = sample(exact, scheduler, (5000, 1, 2, 2), steps=1000)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.03)


def test_samples_stay_within_an_image_s_range() -> None:
    torch.manual_seed(0)
    drawn = sample(lambda x, _: torch.zeros_like(x), linear_betas(), (4, 1, 8, 8), steps=5)
    assert drawn.abs().max() == 1


def test_states_are_decoded_before_they_are_clipped() -> None:
    states: list[torch.Tensor] = []

    def decode(x: torch.Tensor) -> torch.Tensor:
        states.append(x)
        return x.repeat(1, 3, 1, 1) / 1000

    torch.manual_seed(0)
    drawn = sample(lambda x, _: torch.zeros_like(x), linear_betas(), (4, 1, 8, 8), steps=5, decode=decode)
    assert states[0].abs().max() > 1
    torch.testing.assert_close(drawn, (states[0].repeat(1, 3, 1, 1) / 1000).clamp(-1, 1))


def test_log_is_written_with_settings_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=2, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    rows = [{"minutes": 1.0, "step": 7, "loss": 0.5}]
    write_log(tmp_path / "log.json", model, {"batch": 8}, {"accuracy": 0.25}, rows)
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    summary = {"parameters": parameters, "batch": 8, "steps": 7, "accuracy": 0.25}
    assert json.loads((tmp_path / "log.json").read_text()) == summary | {"log": rows}
    assert json.loads(capsys.readouterr().out) == summary
