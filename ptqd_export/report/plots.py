"""The plots of the page: figures over the steps, each with a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle
from typing import Literal, TypeAlias

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ptqd_export.report.chain_steps import ChainSteps, PrecisionSteps, Series
from ptqd_export.report.inline_svg import INK, SERIES, inline_svg, page_style

Scale: TypeAlias = Literal["linear", "log", "symlog"]

LINEAR_UP_TO = 0.01
"""Values up to which a scale that is logarithmic on both sides of zero is linear."""

WIDTH, HEIGHT = 4.5, 2.9
"""Inches: text of 9 points is 10 pixels high where a plot is as wide as a phone, and as large as the page's in two columns."""

MARKERS = "osD^vP*Xh<>"
MOST_MARKERS = 25
"""Most markers along a line: chains may have a thousand steps."""


@dataclass(frozen=True)
class Plot:
    """A plot of the page.

    Attributes:
        name: short name, also an anchor.
        title: title above the plot.
        svg: the picture.
        caption: how to read the plot.
    """

    name: str
    title: str
    svg: Markup
    caption: str


@lru_cache(maxsize=1)
def step_plots(chain: ChainSteps, precisions: tuple[PrecisionSteps, ...]) -> tuple[Plot, ...]:
    """Return every plot over the steps; none if nothing is quantized. The last result is cached: a build puts its plots on two pages."""
    drawings = [drawing for drawing in _DRAWINGS if precisions and (chain.draws_noise or drawing.name != "sigma")]
    with page_style():
        return tuple(_plot(drawing.name, drawing.title, drawing.caption, drawing.draw(chain, precisions)) for drawing in drawings)


REUSING = 0.3
"""Height of the cell of a step that reuses features; that of others is 0.8."""


def timeline(chain: ChainSteps, precisions: Sequence[str]) -> Plot:
    """Plot which precision takes which step.

    Args:
        chain: the steps.
        precisions: all precisions, the one with the fewest bit operations first.
    """
    title, caption = "The precision of each step", "A filled cell means that this precision runs this step. Step 0 is the noisiest."
    if chain.reuses:
        caption += " A low cell is a step that reuses features of the step before."
    with page_style():
        figure = Figure(figsize=(WIDTH, 0.6 + 0.3 * len(precisions)))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.17, right=0.985, top=0.98, bottom=0.5 / figure.get_figheight())
        for place, (name, color) in enumerate(zip(precisions, cycle(SERIES))):
            taken = [step for step, chosen in enumerate(chain.precision) if chosen == name]
            heights = [REUSING if step in chain.reuses else 0.8 for step in taken]
            axes.barh([place] * len(taken), [0.92] * len(taken), left=[step - 0.46 for step in taken], height=heights, color=color)
        axes.set(xlim=(-0.6, len(chain.precision) - 0.4), ylim=(-0.6, len(precisions) - 0.4), xlabel="step (0 is the noisiest)")
        axes.set_yticks(range(len(precisions)), precisions)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        return _plot("timeline", title, caption, figure)


def _plot(name: str, title: str, caption: str, figure: Figure) -> Plot:
    return Plot(name, title, inline_svg(figure, name, f"{title}. {caption}"), caption)


def _lines(
    series: Callable[[PrecisionSteps], Series], label: str, scale: Scale, _chain: ChainSteps, precisions: Sequence[PrecisionSteps]
) -> Figure:
    """Draw a line for each precision, with its own marker as well as its own colour."""
    figure, (axes,) = _figure(1)
    _draw_lines(axes, precisions, series)
    _scale(axes, scale)
    axes.set_ylabel(label)
    _legend(figure, axes)
    return figure


def _draw_lines(axes: Axes, precisions: Sequence[PrecisionSteps], series: Callable[[PrecisionSteps], Series]) -> None:
    for steps, color, marker in zip(precisions, cycle(SERIES), cycle(MARKERS)):
        values = _floats(series(steps))
        axes.plot(values, color=color, marker=marker, ms=4, lw=1.4, markevery=_markevery(len(values)), label=steps.name)


def _snr(chain: ChainSteps, precisions: Sequence[PrecisionSteps]) -> Figure:
    figure, (axes,) = _figure(1)
    _draw_lines(axes, precisions, lambda steps: steps.epsilon_snr_db)
    limits = axes.get_ylim()
    axes.plot(_floats(chain.threshold_db), color=INK, lw=1.6, ls=(0, (5, 2)), label="a/(1-a)")
    axes.set_ylim(limits)
    axes.set_ylabel("dB")
    _legend(figure, axes)
    return figure


def _absorbed(chain: ChainSteps, _precisions: Sequence[PrecisionSteps]) -> Figure:
    figure, (above, below) = _figure(2)
    absorbed, unabsorbed = np.array(chain.absorbed), np.array(chain.unabsorbed)
    added = absorbed + unabsorbed
    above.plot(np.where(added > 0, added, np.nan), color=INK, marker="o", ms=3, lw=1.2, markevery=_markevery(len(added)))
    _scale(above, "log")
    above.set_ylabel("added variance")
    shares = 100 * np.divide(absorbed, added, out=np.zeros_like(added), where=added > 0)
    steps = np.arange(len(added))
    below.bar(steps, shares, 0.84, color=SERIES[0], label="absorbed")
    below.bar(steps, np.where(added > 0, 100 - shares, 0), 0.84, bottom=shares, color=SERIES[1], hatch="////", label="not absorbed")
    below.set(ylabel="% of added", ylim=(0, 100))
    _legend(figure, below)
    return figure


def _sigma(chain: ChainSteps, _precisions: Sequence[PrecisionSteps]) -> Figure:
    figure, (above, below) = _figure(2)
    sigma, corrected = np.array(chain.sigma), np.array(chain.sigma_corrected)
    every = _markevery(len(sigma))
    above.plot(sigma, color=SERIES[1], lw=1.6, ls=(0, (5, 2)), marker="s", ms=4, markevery=every, label="sigma")
    above.plot(corrected, color=SERIES[0], lw=1.2, marker="o", ms=3, markevery=every, label="corrected sigma")
    above.set_ylim(bottom=0)
    smaller = np.full_like(sigma, np.nan)
    np.divide(100 * (sigma - corrected), sigma, out=smaller, where=sigma > 0)
    below.plot(smaller, color=SERIES[0], lw=1.2, marker="o", ms=3, markevery=every)
    _scale(below, "log")
    below.set_ylabel("% smaller")
    _legend(figure, above)
    return figure


def _figure(rows: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with plots over one axis of steps, and room for the legend above them."""
    figure = Figure(figsize=(WIDTH, HEIGHT + 0.7 * (rows - 1)))
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0].tolist()
    figure.subplots_adjust(left=0.17, right=0.985, bottom=0.145 if rows == 1 else 0.115, top=0.87, hspace=0.16)
    axes[-1].set_xlabel("step (0 is the noisiest)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _scale(axes: Axes, scale: Scale) -> None:
    """Set a linear scale, a logarithmic one, or one that is logarithmic on both sides of zero; it is linear if no value lies in the
    logarithmic part. Labels are plain numbers, not powers.
    """
    values = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    if scale == "linear" or not (values > 0 if scale == "log" else np.abs(values) > LINEAR_UP_TO).any():
        return
    axes.set_yscale(scale, **({"linthresh": LINEAR_UP_TO} if scale == "symlog" else {"nonpositive": "mask"}))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.align_ylabels()
    figure.legend(
        handles,
        labels,
        loc="upper center",
        ncols=min(len(handles), 4),
        handlelength=2,
        columnspacing=1.2,
        handletextpad=0.5,
        borderaxespad=0.1,
    )


def _floats(series: Series) -> list[float]:
    return [np.nan if value is None else value for value in series]


def _markevery(points: int) -> int:
    return -(-points // MOST_MARKERS)


@dataclass(frozen=True)
class _Drawing:
    """The name, title and caption of a `Plot`, and the function that draws it."""

    name: str
    title: str
    caption: str
    draw: Callable[[ChainSteps, Sequence[PrecisionSteps]], Figure]


_DRAWINGS = (
    _Drawing(
        "snr",
        "Corrected SNR, and the paper's threshold",
        "Signal-to-noise ratio of each precision's corrected output, as noise prediction. Dashed: a/(1-a), the signal-to-noise ratio of "
        "the state itself, which rises as the chain removes noise. The policy snr takes the cheapest precision above the dashed line, so "
        "that quantization adds less noise than the state still has. The line leaves the plot where no precision comes near it.",
        _snr,
    ),
    _Drawing(
        "snr-raw",
        "SNR without correction",
        "Signal-to-noise ratio of each precision's output, without correction.",
        partial(_lines, lambda steps: steps.snr_db, "dB", "linear"),
    ),
    _Drawing(
        "k",
        "Slope k of the noise",
        "k = -0.1 means that quantization shrinks the output by 10 %. Dividing the output by 1 + k removes this part of the noise. The "
        "axis is linear between -0.01 and 0.01, and logarithmic beyond.",
        partial(_lines, lambda steps: steps.k, "k", "symlog"),
    ),
    _Drawing(
        "r2",
        "R2: share of the noise that is proportional to the output",
        "Share of the variance of d that k e explains. At 1, a gain removes all of the noise; at 0, none.",
        partial(_lines, lambda steps: steps.r2, "R2", "linear"),
    ),
    _Drawing(
        "bias",
        "Bias",
        "Mean of the rest r in each channel. The correction subtracts it.",
        partial(_lines, lambda steps: steps.bias, "root mean square over channels", "log"),
    ),
    _Drawing(
        "residual-variance",
        "Variance left after the correction",
        "Variance of the corrected output around full precision's. The sampler draws less fresh noise to make up for it, where it draws "
        "any.",
        partial(_lines, lambda steps: steps.residual_variance, "variance of the output", "log"),
    ),
    _Drawing(
        "absorbed",
        "Added variance: absorbed or not",
        "Variance of the state, at the precision that runs the step. Top: how much quantization adds. Bottom: the share that the fresh "
        "noise absorbs, plain, and the share that it cannot absorb, hatched.",
        _absorbed,
    ),
    _Drawing(
        "sigma",
        "Fresh noise: sigma and corrected sigma",
        "Top: standard deviation of the sampler's noise, dashed, and of the noise drawn in its place at the precision that runs the "
        "step. Bottom: by how much the second is smaller.",
        _sigma,
    ),
)
