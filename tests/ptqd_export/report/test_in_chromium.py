"""The page in a headless Chromium: nothing complains, everything is seen, tables sort, phones and the dark have their page too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from ptqd_export.records.times_file import MachineTimes
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page
from tests.ptqd_export.report.chromium import Tab, chromium, find_chromium

if TYPE_CHECKING:
    from tests.ptqd_export.report.conftest import Reported

PROGRAM = find_chromium()

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: neither on the path nor in Playwright's cache")

DESKTOP, SMALL, PHONE = (1280, 900), (1200, 800), (400, 740)

COLUMN = """
(() => {{
  const table = [...document.querySelectorAll("table")].find((each) => each.caption.textContent.startsWith({caption!r}));
  const headings = [...table.tHead.rows[0].cells];
  const column = headings.findIndex((cell) => cell.textContent === {name!r});
  if ({click}) headings[column].querySelector("button").click();
  return [headings[column].getAttribute("aria-sort"), [...table.tBodies[0].rows].map((row) => row.cells[column].textContent)];
}})()
"""


@pytest.fixture(scope="module")
def path(reported: Reported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with times that are out of order, as numbers and as text."""
    times = MachineTimes(
        processor="A", cores=4, provider="CPU", batch=8, guided=True, milliseconds_a_step={"fp32": 12.0, "w4a8": 100.0, "w8a8": 7.0}
    )  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(reported.bundle, Evidence(times=(times,))))
    return path


@pytest.fixture(scope="module")
def tab(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        found.show(*DESKTOP)
        found.open(path)
        yield found


def test_nothing_complains(tab: Tab) -> None:
    assert tab.run("document.readyState") == "complete"
    assert tab.complaints == []


def test_a_complaint_would_be_heard(tab: Tab) -> None:
    tab.run("console.error('heard')")
    tab.run("1")
    assert any("heard" in complaint for complaint in tab.complaints)
    tab.complaints.clear()


def test_plots_and_pictures_are_seen(tab: Tab) -> None:
    sizes = tab.run("[...document.querySelectorAll('figure svg')].map((svg) => [svg.clientWidth, svg.clientHeight])")
    assert len(sizes) == 9
    assert all(width > 300 and height > 100 for width, height in sizes)
    assert tab.run("[...document.images].every((image) => image.complete && image.naturalWidth === 8)") is True
    assert tab.run("document.images.length") == 24
    stroke = "getComputedStyle(document.querySelector('#snr path[style*=\"--series-1\"]')).stroke"
    assert tab.run(stroke) == "rgb(0, 114, 178)"


def test_tables_sort_by_number_and_by_name(tab: Tab) -> None:
    time = {"caption": "Each precision", "name": "ms per step"}
    assert tab.run(COLUMN.format(**time, click="false"))[0] is None
    order, cells = tab.run(COLUMN.format(**time, click="true"))
    assert order == "ascending"
    assert [float(cell.split()[0]) for cell in cells] == [7.0, 12.0, 100.0]
    order, cells = tab.run(COLUMN.format(**time, click="true"))
    assert order == "descending"
    assert [float(cell.split()[0]) for cell in cells] == [100.0, 12.0, 7.0]
    noise = {"caption": "Each precision", "name": "noise SNR"}
    for _ in range(2):  # full precision has none, and stays last
        assert tab.run(COLUMN.format(**noise, click="true"))[1][-1] == "-"
    _, names = tab.run(COLUMN.format(caption="Bits of weights", name="layer", click="true"))
    assert names == ["conv_in", "mid.conv1", "mid.conv2", "mid.conv10", "time_embedding"]
    assert tab.complaints == []


OUTSIDE = """
[...document.querySelectorAll("main *")].filter((each) => {
  const scrolls = each.closest(".scrolls");
  const box = each.getBoundingClientRect();
  return box.width > 0 && !(scrolls && scrolls !== each) && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map((each) => each.outerHTML.slice(0, 80))
"""
CUT = """
[...document.querySelectorAll("main *")].filter((each) =>
  getComputedStyle(each).overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1 && each.tagName !== "svg"
).map((each) => [each.classList.contains("scrolls"), each.tabIndex, getComputedStyle(each).backgroundAttachment])
"""


@pytest.mark.parametrize("size", [DESKTOP, SMALL, PHONE], ids=["desktop", "small", "phone"])
def test_nothing_is_cut_and_what_scrolls_has_shadows(tab: Tab, size: tuple[int, int]) -> None:
    tab.show(*size)
    assert tab.run(OUTSIDE) == []
    scrolling = tab.run(CUT)
    assert (len(scrolling) > 0) == (size == PHONE), "on a phone alone"
    for shadowed, tab_index, attachments in scrolling:
        assert shadowed
        assert tab_index == 0, "the keyboard scrolls it too"
        assert {"local", "scroll"} <= set(attachments.split(", "))


def test_captions_are_seen_whole_on_a_phone(tab: Tab) -> None:
    tab.show(*PHONE)
    assert (
        tab.run("Math.max(...[...document.querySelectorAll('caption span')].map((each) => each.getBoundingClientRect().right))") <= PHONE[0]
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pictures_use_the_width(tab: Tab, size: tuple[int, int]) -> None:
    tab.show(*size)
    sides = "[...document.querySelectorAll({!r})].map((each) => [each.getBoundingClientRect().left, each.getBoundingClientRect().right])"
    ((left, right),), images = (tab.run(sides.format(selector)) for selector in ("ul.pictures", "ul.pictures img"))
    used = (min(image[0] for image in images), max(image[1] for image in images))
    assert used[0] - left == pytest.approx(right - used[1], abs=1)
    assert used[1] - used[0] > 0.9 * (right - left)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_never_wider_than_the_window(tab: Tab, size: tuple[int, int]) -> None:
    tab.show(*size)
    width = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = tab.run(width)
    assert scroll <= client == size[0]
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    scroll, client = tab.run(width)
    assert scroll <= client
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = false; })")
    boxes = "[...document.querySelectorAll('figure svg text')].map((text) => text.getBoundingClientRect())"
    smallest = f"Math.min(...{boxes}.map((box) => Math.max(box.width, box.height)))"  # labels of axes stand upright
    assert tab.run(smallest) >= 9, "text of plots can be read"


def test_the_dark_has_its_own_colours(tab: Tab, tmp_path: Path) -> None:
    brightness = {}
    for dark in (False, True):
        tab.show(*DESKTOP, dark=dark)
        with Image.open(tab.screenshot(tmp_path / f"{dark}.png")) as shot:
            brightness[dark] = float(np.median(np.asarray(shot.convert("L"))))
    assert brightness[False] > 200
    assert brightness[True] < 60
