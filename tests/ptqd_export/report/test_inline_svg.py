"""Figures inside a page: the page's colours, no names that clash, nothing from elsewhere, the same bytes again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ptqd_export.report.inline_svg import INK, SERIES, inline_svg, page_style

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ptqd_export.report.conftest import Element, Page


def _svg(name: str = "plot", title: str = "title", label: str = "label") -> str:
    with page_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.plot([1, 2], color=SERIES[0], marker="o")
        axes.bar([0, 1], [1, 2], color=SERIES[1], hatch="//")
        axes.axhline(1, color=INK)
        axes.set_title(title)
        return str(inline_svg(figure, name, label))


def test_colours_are_variables_of_the_page() -> None:
    svg = _svg()
    assert {"--ink", "--faint", "--grid", "--card", "--series-1", "--series-2"} == set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "and none of its own"
    assert not re.search(r"(?<!style)=\"var\(", svg), "which attributes but style need not know"


def test_the_same_figure_gives_the_same_text() -> None:
    assert _svg() == _svg()


def test_what_figures_define_has_names_of_its_own_in_each(parse_page: Callable[[str], Page]) -> None:
    ids = [
        element.attributes["id"]
        for name in ("one", "two")
        for element in _elements(parse_page(_svg(name)).root)
        if "id" in element.attributes
    ]
    assert len(ids) == len(set(ids)) > 2
    svg = _svg()
    assert set(re.findall(r"(?:href=\"|url\()#(\w+)", svg)) <= set(re.findall(r" id=\"(\w+)\"", svg))


def _elements(element: Element) -> list[Element]:
    return [found for child in element.children for found in (child, *_elements(child))]


def test_nothing_comes_from_elsewhere_and_nothing_says_when() -> None:
    svg = _svg()
    assert not re.search(r"https?:|<style|<metadata|<!DOCTYPE|<\?xml|\b20\d\d-", svg)


def test_names_are_escaped_and_no_mathematics() -> None:
    svg = _svg(title="<script>alert(1)</script> $x_$", label='"><script>')
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_$" in svg
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in svg


def test_the_style_of_figures_elsewhere_is_left_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    _svg()
    assert dict(mpl.rcParams) == before
