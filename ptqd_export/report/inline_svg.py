"""A figure of matplotlib's as SVG inside a page: its colours are the page's own, so that it follows light and dark.

What is drawn in one of the colours below comes out in the style sheet's variable of that name. Text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, FAINT, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{place:02x}" for place in range(1, 9))
"""Eight colours; a ninth series takes the first one again, with a marker of its own."""

VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "--ink", FAINT: "--faint", GRID: "--grid", PAPER: "--card", **{color: f"--series-{n}" for n, color in enumerate(SERIES, 1)}}
)

_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of precisions are not ours
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.color": PAPER,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Figures that are made and written in this block look like the page, and come out byte by byte the same."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """The `<svg>` element of a figure made under `page_style`.

    Args:
        figure: what was drawn.
        name: of the figure, different for every one of a page: what it defines is named by a hash that is salted with it.
        label: what stands for it where it cannot be seen.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s+xmlns(:xlink)?=\"[^\"]*\"", "", svg).replace("xlink:href", "href")
    svg = re.sub(r" (width|height)=\"[\d.]+pt\"", "", svg, count=2)  # the page decides; the view box keeps the shape
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # the same in every figure, and ids are to be unique
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)  # the page's
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(f'fill="{color}"', f'style="fill: {color}"').replace(color, f"var({variable})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip())
