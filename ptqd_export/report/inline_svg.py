"""Turn a matplotlib figure into SVG inside a page. Its colours are the page's own, so that it follows light and dark mode.

Each of the colours below becomes the style sheet's variable of that name. Text stays text.
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
"""Eight colours; a ninth series takes the first colour again, with a different marker."""

VARIABLES: Mapping[str, str] = MappingProxyType(
    {INK: "--ink", FAINT: "--faint", GRID: "--grid", PAPER: "--card", **{color: f"--series-{n}" for n, color in enumerate(SERIES, 1)}}
)

_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of precisions come from the bundle and are not math
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
    """Make figures that are drawn and written in this block look like the page, with the same bytes every time."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """Return the `<svg>` element of a figure made under `page_style`.

    Args:
        figure: the figure.
        name: name of the figure, unique on its page: it salts the hashes that name the figure's definitions.
        label: text for readers who cannot see the figure.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s+xmlns(:xlink)?=\"[^\"]*\"", "", svg).replace("xlink:href", "href")
    svg = re.sub(r" (width|height)=\"[\d.]+pt\"", "", svg, count=2)  # the page sets the size; the view box keeps the shape
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # they repeat in every figure, and ids must be unique
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)  # use the page's font
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(f'fill="{color}"', f'style="fill: {color}"').replace(color, f"var({variable})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip())
