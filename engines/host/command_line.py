"""Error reporting shared by both command lines: one message and an exit code, with a traceback only on `--debug`."""

from __future__ import annotations

import re
import select
import sys
import traceback
from typing import Any

import click

from engines.errors import PtqdError
from engines.host.interruption import terminated_by_exception, verdict
from engines.host.room import NO_ROOM, NoRoomError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that a terminal would interpret instead of showing; a message may quote an untrusted file."""

LONGEST = 2000
"""Maximum characters per line of a message; a library may quote an entire file."""

STDOUT = 1
"""File descriptor of standard output."""


class CommandLine(click.Group):
    """A group of commands that reports every failure the same way.

    Exit codes: 0 success; 1 the run failed, or a bug; 2 the command line or the plan is wrong; 3 a backend or device is missing;
    130 interrupted by Ctrl-C; 143 terminated by SIGTERM.
    """

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Print the traceback of an error."))

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
