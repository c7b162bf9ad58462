"""The benchmark: what it compares, and its arithmetic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.apps.bench.bench import BenchRequest, bench_bundle, excerpt
from engines.apps.bench.bench_report import print_report, write_report
from engines.apps.bench.bench_result import BenchResult, ChainTime, swap_milliseconds
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.host.machine import cores, processor
from engines.networks.lora.changed_weights import Constants
from engines.networks.lora.lora_use import LoraUse
from tests.narrow_terminal import WIDTHS, check_whole, narrow

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def chain(steps: dict[str, int], milliseconds: float, speedup: float = 1.0) -> ChainTime:
    count = sum(steps.values())
    return ChainTime(steps, milliseconds, milliseconds / count, 8000 / milliseconds, speedup, outside_engines=0.0625)


RESULT = BenchResult(
    processor="Some CPU",
    cores=4,
    batch_size=8,
    steps=20,
    schedule_steps=250,
    rounds=5,
    guidance=1.5,
    baseline="fp32",
    chains={
        "fp32": chain({"fp32": 20}, 400.0),
        "w8a8": chain({"w8a8": 20}, 250.0, 1.6),
        "auto": chain({"w8a8": 16, "fp32": 4}, 300.0, 4 / 3),
    },
    load_milliseconds={"fp32": 31.4, "w8a8": 22.6},
    swap_milliseconds=20.0,
)


@pytest.fixture(scope="module")
def schedule(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


def test_swaps_cost_what_the_same_steps_without_swaps_do_not_take() -> None:
    assert swap_milliseconds(RESULT.chains) == pytest.approx(300 - 16 * 12.5 - 4 * 20)


@pytest.mark.parametrize(("steps", "timesteps"), [(1, [750]), (2, [750, 0]), (3, [750, 250, 0]), (4, [750, 500, 250, 0])])
def test_excerpt_is_spread_over_the_chain_and_renumbered(schedule: Schedule, steps: int, timesteps: list[int]) -> None:
    short = excerpt(schedule, steps)
    assert [step.timestep for step in short.steps] == timesteps
    assert [step.step for step in short.steps] == list(range(steps))
    assert len(schedule.steps) == 4


def test_whole_schedule_is_its_own_excerpt(schedule: Schedule) -> None:
    assert excerpt(schedule, None) is schedule
    with pytest.raises(UsageError, match=r"(?s)--steps 5.*1 to 4"):
        excerpt(schedule, 5)


def test_weights_with_loras_are_dropped_before_chains_are_timed(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Held]()

    def of(*_: object) -> Held:
        made.append(Held())
        return made[-1]

    monkeypatch.setattr("engines.apps.bench.bench.ChangedWeights.of", of)
    bench_bundle(BenchRequest(tiny.folder, batch_size=1, rounds=1, steps=1, loras=(LoraUse(Path("style.safetensors")),)))
    assert all(one.computed for one in made)
    assert [one.held for one in made] == [set()] * len(made)


class Held:
    """Weights that no LoRA changes. Notes which precisions are computed, and which of these are still held."""

    def __init__(self) -> None:
        self.computed, self.held = set[str](), set[str]()

    def constants(self, precision: str, _: Path) -> Constants:
        self.computed.add(precision)
        self.held.add(precision)
        return {}

    def release(self) -> None:
        self.held.clear()


def test_every_precision_and_the_schedule_take_part(tiny: TinyBundle) -> None:
    result = bench_bundle(BenchRequest(tiny.folder, batch_size=3, rounds=2))
    assert (result.processor, result.cores) == (processor(), cores())
    assert (result.batch_size, result.steps, result.schedule_steps, result.rounds, result.guidance) == (3, 4, 4, 2, 1.5)
    assert result.baseline == "fp32"
    assert {name: one.precision_steps for name, one in result.chains.items()} == {
        "fp32": {"fp32": 4},
        "w8a8": {"w8a8": 4},
        "w4a8": {"w4a8": 4},
        "auto": {"w4a8": 2, "w8a8": 1, "fp32": 1},
    }
    assert list(result.chains) == ["fp32", "w8a8", "w4a8", "auto"]
    assert list(result.load_milliseconds) == ["fp32", "w8a8", "w4a8"]
    assert min(result.load_milliseconds.values()) > 0


def test_figures_of_a_chain_belong_together(tiny: TinyBundle) -> None:
    result = bench_bundle(BenchRequest(tiny.folder, batch_size=3, rounds=2, steps=2))
    baseline = result.chains["fp32"].milliseconds_a_chain
    assert result.chains["fp32"].speedup == 1.0
    assert result.swap_milliseconds == swap_milliseconds(result.chains)
    for one in result.chains.values():
        assert one.milliseconds_a_step == pytest.approx(one.milliseconds_a_chain / 2)
        assert one.images_a_second == pytest.approx(3 / (one.milliseconds_a_chain / 1000))
        assert one.speedup == pytest.approx(baseline / one.milliseconds_a_chain)
        assert 0 < one.outside_engines < 1


def test_unconditional_bundle_can_be_timed(tiny_unconditional: TinyBundle) -> None:
    assert bench_bundle(BenchRequest(tiny_unconditional.folder, 2, 1)).guidance == 1.0


def test_file_holds_the_fields_of_the_result(tmp_path: Path) -> None:
    write_report(RESULT, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == asdict(RESULT) | {"loras": list(RESULT.loras)}
    assert asdict(RESULT)["chains"]["auto"]["precision_steps"] == {"w8a8": 16, "fp32": 4}


def test_table_shows_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(RESULT)
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in printed.splitlines()]
    assert ["precision", "chain", "step", "images/s", "against fp32", "outside engines", "load", "steps"] in lines
    assert ["fp32", "400.0 ms", "20.00 ms", "20.0", "1.00x", "6.2%", "31 ms", "20 fp32"] in lines
    assert ["w8a8", "250.0 ms", "12.50 ms", "32.0", "1.60x", "6.2%", "23 ms", "20 w8a8"] in lines
    assert ["auto", "300.0 ms", "15.00 ms", "26.7", "1.33x", "6.2%", "-", "16 w8a8, 4 fp32"] in lines
    assert "Some CPU, 4 cores" in printed
    assert "batch 8, 20 of 250 steps, guidance 1.5, median of 5 rounds" in printed
    assert "swapping engines: +20.0 ms per chain" in printed


@pytest.mark.parametrize("width", WIDTHS)
def test_table_is_whole_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    narrow(monkeypatch, width)
    print_report(RESULT)
    words = ("precision", "chain", "step", "images/s", "against", "outside", "engines", "load", "steps", "300.0 ms", "16 w8a8, 4 fp32")
    check_whole(capsys.readouterr().out, width, words)


def test_networks_that_reuse_features_are_timed_apart(cut: TinyBundle) -> None:
    found = bench_bundle(BenchRequest(cut.folder, batch_size=2, rounds=1))
    steps = Bundle.open(cut.folder).schedule().steps
    reusing = [f"{step.precision}+skip_0" for step in steps if step.reuse]
    assert reusing
    for name in reusing:
        assert found.chains[name].precision_steps == {name.partition("+")[0]: 1, name: len(steps) - 1}
    assert sum(found.chains["auto"].precision_steps[name] for name in set(reusing)) == len(reusing)


def test_swaps_of_a_chain_that_reuses_features() -> None:
    """A step that reuses takes (130 - 50) / 4 = 20; four of them and one whole step of 50 take 130, so swaps take 7."""
    chains = {
        "w8a8": chain({"w8a8": 5}, 250.0),
        "w8a8+c": chain({"w8a8": 1, "w8a8+c": 4}, 130.0),
        "auto": chain({"w8a8": 1, "w8a8+c": 4}, 137.0),
    }
    assert swap_milliseconds(chains) == pytest.approx(7)
