"""How failures leave a command line: one message on stderr, the right exit code, a traceback only on request."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from engines.errors import BundleError, MissingBackendError, PtqdError, UsageError
from engines.terminal.command_line import Choice, CommandLine
from engines.terminal.verbosity import LOG, detail, is_quiet

ROOT = Path(__file__).parents[3]

FAILURES: dict[str, BaseException] = {
    "failed": PtqdError("it failed", found="[red]3[/red]", expected="2", mend="try again"),
    "usage": UsageError("wrong plan"),
    "backend": MissingBackendError("no backend"),
    "bundle": BundleError("damaged"),
    "bug": KeyError("x"),
    "module": ModuleNotFoundError("No module named 'nowhere'", name="nowhere"),
    "interrupt": KeyboardInterrupt(),
    "click": click.BadParameter("not like this"),
    "exit": click.exceptions.Exit(7),
    "worker": BrokenPipeError(32, "Broken pipe"),
}


@click.group(cls=CommandLine)
def main() -> None:
    """A command line to fail with."""


@main.command()
@click.argument("how")
def fail(how: str) -> None:
    """Fail in one of several ways."""
    raise FAILURES[how]


@main.command()
def talk() -> None:
    """Print more than any pipe holds."""
    for _ in range(20_000):
        click.echo("x" * 79)


@main.command()
@click.option("--animal", type=Choice(["cat", "dog"]))
def tell(animal: str | None) -> None:
    """Tell a detail and a result."""
    detail("a detail")
    click.echo(f"{animal}, {'quiet' if is_quiet() else 'talkative'}")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def _process(*arguments: str) -> list[str]:
    """The command line of a fresh interpreter that runs this file's commands."""
    program = f"import runpy, sys; runpy.run_path({str(Path(__file__))!r})['main'](sys.argv[1:])"
    return [sys.executable, "-c", program, *arguments]


@pytest.mark.parametrize(
    ("how", "exit_code", "message"),
    [
        ("failed", 1, "error: it failed\n  found:    [red]3[/red]\n  expected: 2\n  mend:     try again\n"),
        ("usage", 2, "error: wrong plan\n"),
        ("backend", 3, "error: no backend\n"),
        ("bundle", 1, "error: damaged\n"),
        ("interrupt", 130, "interrupted\n"),
        ("bug", 1, "error: this is a bug in ptqd-export: KeyError: 'x'\n  mend:     report it with the output of --debug\n"),
    ],
)
def test_failure_is_one_message_and_an_exit_code(how: str, exit_code: int, message: str) -> None:
    result = _run("fail", how)
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, message, "")


@pytest.mark.parametrize(("how", "exit_code", "raised"), [("usage", 2, "UsageError: wrong plan"), ("bug", 1, "KeyError: 'x'")])
def test_debug_adds_the_traceback_and_keeps_the_rest(how: str, exit_code: int, raised: str) -> None:
    plain, debug = _run("fail", how), _run("--debug", "fail", how)
    assert debug.exit_code == exit_code
    assert debug.stderr.startswith("Traceback (most recent call last):\n")
    assert "raise FAILURES[how]" in debug.stderr
    assert raised in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_what_click_reports_itself_is_left_to_it() -> None:
    assert _run("fail", "exit").exit_code == 7
    result = _run("fail", "click")
    assert result.exit_code == 2
    assert "Invalid value: not like this" in result.stderr
    assert "bug" not in result.stderr


def test_help_and_success_are_untouched() -> None:
    assert "--debug" in _run("--help").stdout
    assert _run("fail", "--help").exit_code == 0
    assert _run("talk").exit_code == 0


def test_broken_pipe_to_a_worker_is_not_taken_for_a_reader_that_left() -> None:
    result = _run("fail", "worker")
    assert result.exit_code == 1
    assert "error: this is a bug in ptqd-export: BrokenPipeError" in result.stderr


def test_reader_that_leaves_ends_the_command_quietly() -> None:
    with subprocess.Popen(_process("talk"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "x" * 79 + "\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_terminal_gets_color_and_the_words_as_they_are() -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm"}
    done = subprocess.run(_process("fail", "failed"), stderr=theirs, env=environment, check=False, cwd=ROOT)
    os.close(theirs)
    written = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 1
    assert written == ("\x1b[1;31merror:\x1b[0m it failed\r\n  found:    [red]3[/red]\r\n  expected: 2\r\n  mend:     try again\r\n")


def test_pipe_gets_no_color_and_rich_is_not_imported() -> None:
    program = "import sys; from engines.terminal.command_line import _print_error; _print_error('error: x'); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stderr, done.stdout) == ("error: x\n", "False\n")


def test_version_is_that_of_the_installed_project() -> None:
    assert _run("--version").stdout == f"ptqd-export {version('ptqd-export')}\n"


@pytest.mark.parametrize("arguments", [["-h"], ["tell", "-h"]])
def test_short_option_for_help(arguments: list[str]) -> None:
    assert _run(*arguments).stdout == _run(*arguments[:-1], "--help").stdout
    assert "-h, --help" in _run(*arguments).stdout


@pytest.mark.parametrize("arguments", [["-v", "tell"], ["tell", "--verbose"]])
def test_details_are_told_on_standard_error_where_asked(arguments: list[str]) -> None:
    assert (_run("tell").stdout, _run("tell").stderr) == ("None, talkative\n", "")
    result = _run(*arguments)
    versions, told = result.stderr.splitlines()
    assert versions.startswith(f"ptqd-export {version('ptqd-export')}, numpy ")
    assert told == "a detail"
    assert result.stdout == "None, talkative\n"


@pytest.mark.parametrize("arguments", [["-q", "tell"], ["tell", "--quiet"]])
def test_quiet_leaves_the_result(arguments: list[str]) -> None:
    result = _run(*arguments)
    assert (result.stdout, result.stderr) == ("None, quiet\n", "")
    assert not is_quiet(), "the next command decides for itself"
    assert LOG.handlers == []


def test_misspelt_choice_is_answered_with_the_nearest() -> None:
    result = _run("tell", "--animal", "Cat")
    assert result.exit_code == 2
    assert "'Cat' is not one of 'cat', 'dog'. Did you mean \"cat\"?" in result.stderr


def test_commands_are_listed_in_the_order_of_their_definition() -> None:
    lines = _run("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == ["fail", "talk", "tell"]


def test_missing_module_of_no_extra_is_a_bug() -> None:
    result = _run("fail", "module")
    assert result.exit_code == 1
    assert "this is a bug in ptqd-export: ModuleNotFoundError" in result.stderr
