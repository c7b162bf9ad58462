"""What both command lines share: options of every command, and errors as one message and an exit code."""

from __future__ import annotations

import logging
import platform
import re
import select
import sys
import traceback
from typing import Any

import click

from engines.errors import PtqdError, did_you_mean
from engines.host.interruption import terminated_by_exception, verdict
from engines.host.room import NO_ROOM, NoRoomError
from engines.terminal.verbosity import LOG, detail, is_verbose, told_on_standard_error

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a terminal would interpret instead of showing; a message may quote an untrusted file."""

LONGEST = 2000
"""Maximum characters per line of a message; a library may quote an entire file."""

_SHOWN = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch", "diffusers")
"""Packages whose versions `--verbose` shows."""

STDOUT = 1
"""File descriptor of standard output."""


class Choice(click.Choice[str]):
    """One of several names; a misspelt name is answered with the most similar one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = did_you_mean(value, self.choices)
            raise click.BadParameter(error.message + (f" D{hint[1:]}" if hint else ""), ctx, param) from error


def _verbosity_options() -> list[click.Parameter]:
    """Return options that may stand before or after the name of a command."""
    settings: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": _set_level}
    return [
        click.Option(["-v", "--verbose"], help="Print details too: versions, runtime, threads and paths.", **settings),
        click.Option(["-q", "--quiet"], help="Print only errors and the result.", **settings),
    ]


def _set_level(_ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if given:
        LOG.setLevel(logging.INFO if param.name == "verbose" else logging.ERROR)


class Command(click.Command):
    """A command that takes the options of every command."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params += _verbosity_options()

    def invoke(self, ctx: click.Context) -> Any:
        if is_verbose():
            detail(_versions())
        return super().invoke(ctx)


def _versions() -> str:
    """Return a line on what runs: the project, Python, and the libraries of a bundle's runtimes that are installed."""
    from engines.terminal.installed_packages import PROJECT, installed_versions  # slow to import, and rarely needed

    installed = ", ".join(f"{name} {version}" for name, version in installed_versions(PROJECT, *_SHOWN).items())
    return f"{installed}; Python {platform.python_version()} on {platform.system()} {platform.machine()}"


class Group(click.Group):
    """A group of commands, listed in the order of their definition."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)


class CommandLine(Group):
    """A program: its commands report every failure the same way.

    Exit codes: 0 success; 1 the run failed, or a bug; 2 the command line or the plan is wrong; 3 a backend or device is missing;
    130 interrupted by Ctrl-C; 143 terminated by SIGTERM.
    """

    group_class = Group

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, context_settings={"help_option_names": ["-h", "--help"]}, **attributes)
        self.params += [*_verbosity_options(), click.Option(["--debug"], is_flag=True, help="Print the traceback of an error.")]
        click.version_option(package_name="ptqd-export", message="%(package)s %(version)s")(self)

    def main(self, *args: Any, **extra: Any) -> Any:
        with told_on_standard_error():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        try:
            with terminated_by_exception():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise  # click reports these itself, with the same exit codes
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                raise  # click then exits quietly, as `ptqd-run ... | head` expects
            if debug:
                traceback.print_exc()
            message, exit_code = _verdict(error)
            _print_error(message)
            raise click.exceptions.Exit(exit_code) from error


def _verdict(error: BaseException) -> tuple[str, int]:
    """Return the message to print and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return verdict(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        error = NoRoomError.of(error)
    if isinstance(error, ModuleNotFoundError):
        from engines.terminal.installed_packages import missing_extra  # slow to import, and rarely needed

        error = missing_extra(error) or error
    if isinstance(error, PtqdError):
        return f"error: {error}", error.exit_code
    if isinstance(error, MemoryError):
        return f"error: There is not enough memory.\n  found:    {error}\n  mend:     lower the batch size, or use a larger machine", 1
    return f"error: this is a bug in ptqd-export: {type(error).__name__}: {error}\n  mend:     report it with the output of --debug", 1


def _reader_is_gone() -> bool:
    """Whether the reader of our own standard output is gone; any other broken pipe, such as a child process's, is a failure."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_error(message: str) -> None:
    shown = (line if len(line) <= LONGEST else f"{line[:LONGEST]} ..." for line in message.split("\n"))
    message = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], "\n".join(shown))
    if not sys.stderr.isatty():
        click.echo(message, err=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(message)
    text.highlight_regex(r"\A(error:|interrupted|terminated)", "bold red")
    Console(stderr=True).print(text, soft_wrap=True)
