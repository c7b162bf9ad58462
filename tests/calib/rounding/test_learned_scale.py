"""Learned step sizes: the arithmetic of the oracle, the gradients of LSQ, and where they lead."""

from __future__ import annotations

import pytest
import torch

from calib.quantizers.quantizers import ActivationQuantizer
from calib.rounding.learned_scale import LearnedScale

CPU = torch.device("cpu")
START = ActivationQuantizer(4, signed=False, scale=0.1, zero_point=6)


def test_it_starts_as_the_oracle_bit_for_bit() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    learned = LearnedScale(START, CPU)
    assert torch.equal(learned(x), START.fake(x))
    assert learned.quantizer().scale == float(torch.tensor(START.scale))


def test_what_it_computes_is_what_its_quantizer_computes() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    learned = LearnedScale(START, CPU)
    with torch.no_grad():
        learned.a.fill_(0.123)
    assert torch.equal(learned(x), learned.quantizer().fake(x))
    assert learned.quantizer().scale == pytest.approx(0.1 * 1.1308844, rel=1e-6)
    assert (learned.quantizer().zero_point, learned.quantizer().bits) == (6, 4)


def test_gradients_are_those_of_learned_step_sizes() -> None:
    x = torch.tensor([0.234, -0.17, 5.0, -3.0], requires_grad=True)
    learned = LearnedScale(START, CPU)
    (learned(x) * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 10.0, 0.0, 0.0]
    inside, clipped = 1 * (2 - 2.34) + 10 * (-2 + 1.7), 100 * (15 - 6) + 1000 * (0 - 6)  # LSQ, eq. 3: round(v/s) - v/s inside
    assert learned.a.grad is not None
    torch.testing.assert_close(float(learned.a.grad), 0.1 * (inside + clipped), rtol=1e-5, atol=0)


def test_it_finds_the_scale_of_least_error() -> None:
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0)) - 0.5
    learned = LearnedScale(START, CPU)
    optimizer = torch.optim.Adam(learned.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (learned(x) - x).square().mean().backward()
        optimizer.step()

    def error(scale: float) -> float:
        return float((ActivationQuantizer(4, False, scale, 6).fake(x) - x).square().mean())

    assert error(learned.quantizer().scale) < 1.02 * min(error(0.05 + 0.0005 * i) for i in range(200))
    assert error(START.scale) > 1.5 * error(learned.quantizer().scale)


def test_scale_stays_within_a_factor_of_two() -> None:
    learned = LearnedScale(START, CPU)
    for a, factor in ((9.0, 2.0), (-9.0, 0.5)):
        with torch.no_grad():
            learned.a.fill_(a)
        assert learned.quantizer().scale == pytest.approx(factor * 0.1)


def test_lower_precision_is_quantized_in_float32() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = LearnedScale(START, CPU)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, START.fake(x.float()).bfloat16())
    assert torch.equal(found, START.fake(x))
