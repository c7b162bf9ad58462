"""Ends a worker whose GPU failed: CUDA works again only in a new process, and Ray starts one for every worker that dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import click

from engines.errors import DeviceLostError


@contextlib.contextmanager
def ending_with_its_device() -> Iterator[None]:
    """End this process, with the error in its log, if the block raises DeviceLostError."""
    try:
        yield
    except DeviceLostError as error:
        click.echo(str(error), err=True)
        os._exit(error.exit_code)
