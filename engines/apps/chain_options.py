"""Options of every command that samples along a bundle's chains. They are fields of `engines.networks.chain_choice.ChainChoice`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import click

from engines.terminal.command_line import Choice

Command: TypeAlias = Callable[..., Any]

RUNTIME = click.option(
    "--runtime",
    type=Choice(["auto", "target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="Runtime of the networks; `target` is the bundle's own, `auto` on a CPU the fastest that `ptqd-export engines` found right.",
)

_OPTIONS = (
    click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale. Default: the schedule's."),
    click.option("--accept-guidance", is_flag=True, help="Allow a guidance scale that the corrections were not fitted at."),
    click.option("--schedule", default="default", show_default=True, help="Schedule of the bundle to use."),
    click.option("--precision", default="auto", show_default=True, help="Precision of every step; `auto` takes the schedule's choice."),
    click.option(
        "--correction", type=Choice(["on", "off"]), default="on", show_default=True, help="`off` runs the plain quantized sampler."
    ),
    RUNTIME,
)


def chain_options(command: Command) -> Command:
    """Add all chain options to a command, in the order above."""
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)
