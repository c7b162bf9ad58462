"""Options of every command that samples along a bundle's chains. They are fields of `engines.networks.chain_choice.ChainChoice`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import click

from engines.bundle.image_size import ImageSize, parse_size
from engines.terminal.command_line import Choice

Command: TypeAlias = Callable[..., Any]

RUNTIME = click.option(
    "--runtime",
    type=Choice(["auto", "target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="Runtime of the networks; `target` is the bundle's own, `auto` on a CPU the fastest that `ptqd-export engines` found right.",
)


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> ImageSize | None:
    return None if value is None else parse_size(value)


def all_sizes(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[ImageSize, ...]:
    """Return the sizes of an option that can be repeated."""
    return tuple(parse_size(value) for value in values)


SIZE = click.option(
    "--size",
    callback=_size,
    metavar="HEIGHTxWIDTH",
    help="Size of the images: HEIGHTxWIDTH, such as 832x1216 for 832 pixels high, 1216 wide. Default: the bundle's first.",
)

_OPTIONS = (
    SIZE,
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
