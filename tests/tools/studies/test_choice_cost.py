"""What the choice of corrections costs: rows are counted, guidance included, and each mode has its row of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from tools.studies.choice_cost import Cost, main

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

SAMPLES, STEPS, NETWORKS, BRANCHES = 16, 2, 4, 2


def test_medians_are_taken_of_each_figure() -> None:
    assert Cost.median([Cost(1, 30, 5), Cost(2, 10, 5), Cost(3, 20, 5)]) == Cost(2, 20, 5)


def test_joint_takes_every_sample_through_every_network_once_a_step(digits: Digits) -> None:
    done = CliRunner().invoke(main, [str(digits.folder), "--samples", str(SAMPLES), "--steps", str(STEPS), "--rounds", "1"])
    assert done.exit_code == 0, done.output
    joint, auto = ([cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:])
    assert (joint[:2], joint[5:]) == ([str(SAMPLES), "joint"], ["1.00", "1.00"])
    assert int(joint[4]) == SAMPLES * STEPS * NETWORKS * BRANCHES
    assert auto[:2] == [str(SAMPLES), "auto"]
    assert int(auto[4]) > int(joint[4])
