"""Ctrl-C and SIGTERM: one line that says what is kept, the exit code of the signal, and no half-written file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from engines.host.interruption import INTERRUPTED, TERMINATED, Terminated, keeping, terminated_by_exception, verdict

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[3]
RUN = "import sys; from engines.cli import main; main(sys.argv[1:])"


def test_sigterm_is_an_exception_in_the_block_and_what_it_was_behind_it() -> None:
    with pytest.raises(Terminated), terminated_by_exception():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_somebody_else_is_left_alone() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: taken.append(number))
    try:
        with terminated_by_exception():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM]


def test_the_innermost_block_says_what_is_kept() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, keeping("the stages"), keeping("the pictures"):
        raise KeyboardInterrupt
    assert verdict(caught.value) == ("interrupted: the pictures", INTERRUPTED)


def test_codes_are_those_that_a_shell_reports() -> None:
    assert verdict(KeyboardInterrupt()) == ("interrupted", 130)
    assert verdict(Terminated()) == ("terminated", 143)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "exit_code", "word"), [(signal.SIGINT, INTERRUPTED, "interrupted"), (signal.SIGTERM, TERMINATED, "terminated")]
)
def test_sampling_stops_and_every_picture_is_whole(
    tiny: TinyBundle, tmp_path: Path, number: signal.Signals, exit_code: int, word: str
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", RUN, "sample", str(tiny.folder), "--num", "100000", "--seed", "1", "--batch-size", "4"]
    with subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while not (output / "00000009.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == exit_code
    assert error == (
        f"{word}: every file in {output} is whole, but some are missing, and so is samples.json; "
        "the same command with --overwrite starts over\n"
    )
    names = sorted(path.name for path in output.iterdir())
    assert names == [f"{n:08d}.png" for n in range(len(names))]
    for name in names:
        with Image.open(output / name) as image:
            image.load()
