"""`ptqd-run compare` on the digits bundle: its figures by the definition, and the exit code on either side of a threshold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines.bundle.bundle import Bundle
from engines.chain.denoiser import guide
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.cli import main
from engines.networks.engine_bank import EngineBank
from tools.digits.data import CLASSES

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

NUM = 6
SEED = 4


def compare(digits: Digits, *options: object) -> Result:
    fixed = ("--num", NUM, "--seed", SEED, "--steps", 3, "--precisions", "w8a8,w4a8")
    return CliRunner().invoke(main, ["compare", str(digits.folder), *map(str, (*fixed, *options))])


@pytest.fixture(scope="module")
def found(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("compare") / "figures.json"
    result = compare(digits, "--json", path)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture(autouse=True)
def polygraphy() -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")


def test_first_step_is_that_of_the_engines_on_the_noise_that_a_chain_starts_from(digits: Digits, found: dict[str, Any]) -> None:
    bundle = Bundle.open(digits.folder)
    noise, samples = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(NUM)
    x, rows = noise.start(samples), rows_of(samples, noise, CLASSES, None)
    chain = Chain(bundle.schedule(), EngineBank(bundle, 1.5, batch=NUM), "fp32")
    timestep = bundle.schedule().steps[0].timestep
    e, q = (guide(chain.denoisers[name](x, timestep, rows), 1.5).astype(np.float64) for name in ("fp32", "w8a8"))
    snr = 10 * np.log10(np.square(e).sum() / np.square(q - e).sum())
    assert found["precisions"]["w8a8"]["steps"][0]["snr_db"] == pytest.approx(snr, rel=1e-6)


def test_threshold_that_holds_exits_0_and_one_above_exits_1(digits: Digits, found: dict[str, Any]) -> None:
    worst = min(step["snr_db"] for of_precision in found["precisions"].values() for step in of_precision["steps"])
    assert compare(digits, "--min-snr-db", worst - 0.01).exit_code == 0
    assert compare(digits, "--min-snr-db", worst + 0.01).exit_code == 1
