"""The options of every command that walks a bundle's chains: fields of `engines.networks.chain_choice.ChainChoice`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import click

Command: TypeAlias = Callable[..., Any]

RUNTIME = click.option(
    "--runtime",
    type=click.Choice(["target", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="target",
    show_default=True,
    help="What runs the networks, if not the bundle's target.",
)

_OPTIONS = (
    click.option("--guidance", type=click.FloatRange(min=0), help="Guidance scale, if not the schedule's."),
    click.option("--accept-guidance", is_flag=True, help="Sample at a scale that the corrections were not fitted at."),
    click.option("--schedule", default="default", show_default=True, help="Schedule of the bundle."),
    click.option("--precision", default="auto", show_default=True, help="One for every step; auto is the schedule's choice."),
    click.option(
        "--correction", type=click.Choice(["on", "off"]), default="on", show_default=True, help="Off: the plain quantized sampler."
    ),
    RUNTIME,
)


def chain_options(command: Command) -> Command:
    """Adds them all, in their order."""
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)
