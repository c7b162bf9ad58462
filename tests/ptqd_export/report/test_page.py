"""The page: well formed, self-contained, legible, the same bytes again, and every figure that of the bundle's files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest

from ptqd_export.records.kernel_advice import kernel_advice
from ptqd_export.records.times_file import MachineTimes
from ptqd_export.report import page as module
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page

if TYPE_CHECKING:
    from tests.ptqd_export.report.conftest import Element, Page, Reported

STEP_PLOTS = ["snr", "snr-raw", "k", "r2", "bias", "residual-variance", "absorbed", "sigma"]
BITS = {(8, None): "8 / float", (4, 8): "4 / 8", (None, None): "float"}
REFERENCES = {"https://arxiv.org/abs/2305.10657"}
PLAIN_TEXT = 4.5
"""Least contrast of text (WCAG 2.2, 1.4.3); of graphics it is 3 (1.4.11)."""


@pytest.fixture(scope="session")
def portable(reported: Reported) -> str:
    """The page in the bundle."""
    return reported.page


@pytest.fixture(scope="session")
def page(portable: str, parse_page: Callable[[str], Page]) -> Page:
    return parse_page(portable)


def _graph(reported: Reported, precision: str) -> Path:
    return reported.folder / "graphs" / "onnxruntime" / f"{precision}.onnx"


def _everything(element: Element) -> list[Element]:
    return [found for child in element.children for found in (child, *_everything(child))]


# The file


def test_it_is_well_formed_with_names_that_are_there_once(portable: str, page: Page) -> None:
    assert portable.startswith("<!DOCTYPE html>")
    elements = _everything(page.root)
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids)) > 10
    inner = [element.attributes["href"] for element in page.root.all("a") if str(element.attributes["href"]).startswith("#")]
    assert len(inner) >= 4
    assert {str(target)[1:] for target in inner} <= set(ids)
    labels = {element.attributes["aria-labelledby"] for element in elements if "aria-labelledby" in element.attributes}
    assert labels <= set(ids)


def test_it_loads_nothing(portable: str, page: Page) -> None:
    links = {element.attributes.get("href") for element in page.root.all("a")}
    assert {link for link in links if not str(link).startswith("#")} == REFERENCES
    assert set(re.findall(r"https?://[^\"'\s<)]*", portable)) == REFERENCES
    sources = [value for element in _everything(page.root) for key, value in element.attributes.items() if key in ("src", "href", "srcset")]
    assert {str(value).partition(":")[0] for value in sources if not str(value).startswith("#")} == {"data", "https"}
    assert not re.search(r"@import|url\((?!#)", portable)
    assert {element.attributes.get("rel") for element in page.root.all("link")} == {"icon"}


def test_the_only_script_that_may_run_is_its_own(page: Page) -> None:
    (script,) = page.root.all("script")
    (policy,) = (meta for meta in page.root.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy.attributes["content"]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not [key for element in _everything(page.root) for key in element.attributes if key.startswith("on")]


def test_the_same_bundle_gives_the_same_bytes(reported: Reported, portable: str) -> None:
    assert report_page(reported.bundle, Evidence()) == portable


def test_the_portable_page_holds_no_times_and_no_paths(reported: Reported, portable: str) -> None:
    assert "Measured time" not in portable
    assert str(reported.folder) not in portable
    assert not re.search(r"\b\d[\d.]* ms\b|\b20\d\d-\d\d-\d\d", portable)


# What it says


def test_it_is_named_after_the_model(own_reported: Reported, page: Page, parse_page: Callable[[str], Page]) -> None:
    def names(of: Page) -> list[str]:
        return [of.root.all(tag)[0].whole_text for tag in ("title", "h1")]

    assert names(page) == ["tiny", "tiny"]
    for model, output, expected in (
        ({"path": "../models/ldm-4"}, "../build/first", "ldm-4"),
        ({"path": "model"}, "../../build/digits", "digits"),
        ({"path": None, "factory": "package.module:make"}, "build/x", "make"),
    ):
        own_reported.edit("plan.json", methodcaller("update", {"model": model, "output": output}))
        assert names(parse_page(report_page(own_reported.bundle, Evidence()))) == [expected, expected]


def test_symbols_are_explained(page: Page) -> None:
    explained = {term.text for listed in page.root.all("dl")[1:] for term in listed.all("dt")}
    assert explained == {"e, d", "k, r", "R2", "a/(1-a)", "sigma"}


def test_slow_kernels_are_told_with_the_words_of_the_build(reported: Reported) -> None:
    bundle, advice = reported.bundle, kernel_advice("onnxruntime", "CPU", ("w8a8",), sums_in_16_bits=True)
    times = {"fp32": 1.0}
    slow, fast = (
        MachineTimes(processor=name, cores=2, provider="CPU", batch=8, guided=True, milliseconds_a_step=times, sums_in_16_bits=slow)
        for name, slow in (("Old", True), ("New", False))
    )
    text = report_page(bundle, Evidence(times=(slow, fast)))
    assert f"Old, 2 cores, batch 8: {advice}." in text
    assert text.count(str(advice)) == 1


def test_precisions_are_those_of_the_manifest_and_the_statistics(reported: Reported, page: Page) -> None:
    header, *rows = page.table("Each precision")
    assert header == [
        "precision", "size", "relative size", "bit operations saved, quantized layers",
        "bit operations saved, whole network", "noise SNR", "R2", "corrected SNR", "steps",
    ]  # fmt: skip
    manifest, schedule = reported.json("manifest.json"), reported.json("schedules/default.json")
    taken, full = Counter(step["precision"] for step in schedule["steps"]), _graph(reported, "fp32").stat().st_size
    assert {row[0] for row in rows} == set(manifest["precisions"])
    assert rows[0] == ["fp32", f"{full / 1e6:.2f} MB", "1.00x", "1.0x", "1.0x", "-", "-", "-", str(taken["fp32"])]
    for name, size, share, layers, everything, snr, r2, corrected, steps in rows[1:]:
        record, bytes_ = manifest["precisions"][name], _graph(reported, name).stat().st_size
        stored = reported.statistics(name)["steps"]
        assert (size, share) == (f"{bytes_ / 1e6:.2f} MB", f"{bytes_ / full:.2f}x")
        assert (layers, everything) == (f"{record['bit_operations_saved']:.1f}x", f"{record['bit_operations_saved_all']:.1f}x")
        assert snr == f"{fmean(step['snr_db'] for step in stored):.1f} dB"
        assert r2 == f"{fmean(step['r2'] for step in stored):.3f}"
        assert corrected == f"{fmean(step['corrected_snr_db'] for step in stored):.1f} dB"
        assert steps == str(taken[name])


def test_headlines_are_of_the_chain(reported: Reported, page: Page) -> None:
    cards = {card.all("dt")[0].text: [part.text for part in card.all("dd")] for card in page.root.all("dl")[0].children}
    chain = [step["precision"] for step in reported.json("schedules/default.json")["steps"]]
    records = reported.json("manifest.json")["precisions"]
    size = sum(_graph(reported, name).stat().st_size for name in set(chain))
    assert cards["Size of the chain's engines"][0] == f"{size / 1e6:.2f} MB"
    cost = fmean(1 / records[name]["bit_operations_saved_all"] for name in chain)
    assert cards["Bit operations"][0] == f"{1 / cost:.1f}x fewer"
    stored = {name: reported.statistics(name)["steps"] for name in set(chain) - {"fp32"}}
    noise = fmean(stored[name][step]["corrected_snr_db"] for step, name in enumerate(chain) if name != "fp32")
    assert cards["Noise, corrected"][0] == f"{noise:.1f} dB SNR"


def test_every_plot_is_there_with_a_text_and_its_numbers(reported: Reported, page: Page) -> None:
    figures = {str(figure.attributes["id"]): figure for figure in page.root.all("figure")}
    assert list(figures) == ["timeline", *STEP_PLOTS]
    precisions = {"w4a8", "w8a8"}
    for name, figure in figures.items():
        (svg,) = figure.all("svg")
        assert svg.attributes["role"] == "img"
        assert figure.all("h3")[0].text in str(svg.attributes["aria-label"])
        assert figure.all("figcaption")[0].text.strip()
        assert len(svg.all("path")) > 10
        shown = {text.whole_text for text in svg.all("text")}
        if name not in ("absorbed", "sigma"):
            assert precisions <= shown, "the legend, or the axis of the timeline"
    numbers = page.table("k, by step and precision")
    stored = {name: reported.statistics(name)["steps"] for name in numbers[0][1:]}
    assert numbers[1:] == [[str(i), *(f"{steps[i]['k']:.4g}" for steps in stored.values())] for i in range(4)]


def test_the_chain_is_there_in_numbers(reported: Reported, page: Page) -> None:
    _, *rows = page.table("The chain, step by step")
    for row, step in zip(rows, reported.json("schedules/default.json")["steps"], strict=True):
        chosen = step["corrections"][step["precision"]]
        assert row[:3] == [str(step["step"]), f"{step['timestep']:g}", step["precision"]]
        assert row[4:6] == [f"{step['sigma']:.5g}", f"{chosen['sigma_corrected']:.5g}"]
        assert row[7] == f"{chosen['unabsorbed_variance']:.3g}"


def test_every_layer_is_there_with_its_bits_and_its_reason(reported: Reported, page: Page) -> None:
    header, *rows = page.table("Bits of weights / activations")
    assert header[:3] == ["layer", "operator", "role"]
    names = header[3:-1]
    layers = {name: reported.statistics(name)["layers"] for name in names}
    for i, (name, op, role, *cells, reason) in enumerate(rows):
        of_layer = [layers[precision][i] for precision in names]
        assert (name, op, role) == tuple(of_layer[0][key] for key in ("name", "op", "role"))
        assert cells == [BITS[layer["weight_bits"], layer["activation_bits"]] for layer in of_layer]
        assert reason == (of_layer[0]["reason"] or "-")
    _, *reasons = page.table("Number of layers")
    assert {row[0]: int(row[1]) for row in reasons} == Counter(layer["reason"] for layer in layers[names[0]] if layer["reason"])


def test_help_of_layers_and_products_of_attention_are_told(own_reported: Reported, page: Page, parse_page: Callable[[str], Page]) -> None:
    def help_first(content: dict[str, Any]) -> None:
        content["layers"][0] |= {"low_rank": 16, "rotation": 32, "learned": ["adapters"]}
        attention = {"name": "mid.attn1", "form": "fp8", "reason": None, "bit_operations": 4}
        content["attention"] = [attention, attention | {"name": "mid.attn2", "form": "float", "reason": "keys of a prompt"}]

    for name in ("w4a8", "w8a8"):
        own_reported.edit(f"statistics/onnxruntime/{name}.json", help_first)
    helped = parse_page(report_page(own_reported.bundle, Evidence()))
    (_, first, *_), (_, before, *_) = (one.table("Bits of weights / activations") for one in (helped, page))
    assert first[3:5] == [f"{bits} + rank 16 + rotation 32 + adapters" for bits in before[3:5]]
    header, *rows = helped.table("Products of attention")
    assert header[1:-1] == ["w4a8", "w8a8"]
    assert rows == [["mid.attn1", "fp8", "fp8", "-"], ["mid.attn2", "float", "float", "keys of a prompt"]]
    assert "Products of attention" not in page.root.whole_text


def test_names_of_layers_break_after_their_dots(reported: Reported, portable: str) -> None:
    names = [layer["name"] for layer in reported.statistics("w4a8")["layers"]]
    assert any("." in name for name in names)
    for name in names:
        assert f">{'.<wbr>'.join(name.split('.'))}</th>" in portable


def test_pictures_are_there_with_what_they_are(page: Page) -> None:
    images = page.root.all("img")
    assert len(images) == 24
    assert [str(image.attributes["alt"]).partition(": ")[2] for image in images[:3]] == ["full precision", "uncorrected", "corrected"]
    assert all(re.match(r"Sample \d, class [012]: ", str(image.attributes["alt"])) for image in images)


def test_versions_and_commands_are_there(reported: Reported, page: Page) -> None:
    _, *rows = page.table("Versions")
    assert {row[0]: row[1] for row in rows} == reported.json("manifest.json")["versions"]
    commands = "".join(element.whole_text for element in page.root.all("pre"))
    assert "ptqd-export build --plan plan.json\n" in commands
    assert json.loads(page.root.all("pre")[-1].text) == reported.json("plan.json")


def test_a_model_without_pictures_has_a_page_too(reported_latent: Reported, parse_page: Callable[[str], Page]) -> None:
    page = parse_page(reported_latent.page)
    assert page.root.all("img") == []
    assert [figure.attributes["id"] for figure in page.root.all("figure")] == ["timeline", *STEP_PLOTS]
    assert "#pictures" not in {element.attributes["href"] for element in page.root.all("a")}


# What was measured


def test_times_are_shown_for_every_machine(reported: Reported, parse_page: Callable[[str], Page]) -> None:
    bundle = reported.bundle
    names = list(bundle.manifest.precisions)
    known = MachineTimes(
        processor="A",
        cores=4,
        provider="CPU",
        batch=8,
        guided=True,
        milliseconds_a_step={name: 8.0 if name == "fp32" else 2.0 for name in names},
    )
    other = MachineTimes(processor="B", cores=1, provider="CPU", batch=8, guided=True, milliseconds_a_step={"fp32": 3.0})
    page = parse_page(report_page(bundle, Evidence(times=(known, other))))
    header, full, quantized, *_ = page.table("Each precision")
    assert header[5:7] == ["ms per step [1]", "ms per step [2]"]
    assert "; times [1]: A, 4 cores, batch 8; times [2]: B, 1 cores, batch 8" in page.root.whole_text
    assert full[5:7] == ["8.0 (1.00x)", "3.0 (1.00x)"]
    assert quantized[5:7] == ["2.0 (4.00x)", "-"]
    taken = [step.precision for step in bundle.schedule().steps]
    mean = fmean(8.0 if name == "fp32" else 2.0 for name in taken)
    first, second = (card for card in page.root.all("dl")[0].children if card.all("dt")[0].text == "Measured time per step")
    assert first.all("dd")[0].text == f"{mean:.1f} ms"
    assert f"{8 / mean:.2f}x as fast" in first.all("dd")[1].text
    assert second.all("dd")[0].text == "unknown"


def test_evaluations_and_comparisons_are_shown_with_their_commands(
    reported: Reported, evaluation_file: Path, comparison_file: Path, parse_page: Callable[[str], Page]
) -> None:
    bundle = reported.bundle
    page = parse_page(report_page(bundle, Evidence.load(bundle, [evaluation_file], [comparison_file])))
    header, distance, paired = page.table("200 samples of seed 3, guidance 1.5, steps: 4 w4a8")
    assert header == ["figure", "fp32", "quantized", "difference", "95 % interval from", "to"]
    assert distance == ["frechet distance", "4.5", "6.25", "+1.75", "+1.25", "+2.25"]
    assert paired == ["pooled psnr", "-", "31.5", "-", "+31", "+32"]
    _, engine = page.table("16 samples of seed 0")
    assert engine == ["w4a8", "same", "30.25 dB", "0", "0.999000", "41.50 dB", "0.125", "same", "1 of 2"]
    assert page.table("SNR by step")[1:] == [["0", "750", "30.25 dB", "32.75 dB"], ["1", "500", "same", "same"]]
    text = page.root.whole_text
    assert "inception score is not available: the extractor has no output called logits" in text
    assert "Warning: few <samples>" in text
    assert "ptqd-run evaluate BUNDLE --num 200 --seed 3 --seeds 1 --schedule default --precision auto --correction on" in text
    assert "ptqd-run compare BUNDLE --schedule default --num 16 --seed 0" in text


# Strings that are not ours


HOSTILE = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;{{ 7 * 7 }} \u00e9"


def test_strings_of_a_bundle_are_escaped(own_reported: Reported, page: Page, parse_page: Callable[[str], Page]) -> None:
    def deface(manifest: dict[str, Any]) -> None:
        manifest["model"]["family"] = manifest["measured_on"] = HOSTILE
        manifest["versions"][HOSTILE] = HOSTILE

    own_reported.edit("manifest.json", deface)
    own_reported.edit("plan.json", lambda plan: plan["model"].update(path=HOSTILE))
    own_reported.edit("schedules/default.json", lambda schedule: schedule.update(policy=HOSTILE))
    for name in ("w4a8", "w8a8"):
        own_reported.edit(f"statistics/onnxruntime/{name}.json", lambda content: content["layers"][3].update(name=HOSTILE, reason=HOSTILE))
    times = MachineTimes(
        processor=HOSTILE, cores=1, provider="CPU", batch=1, guided=False, milliseconds_a_step=dict.fromkeys(("fp32", "w4a8", "w8a8"), 1.0)
    )
    text = report_page(own_reported.bundle, Evidence(times=(times,)))
    attacked = parse_page(text)
    assert text.isascii()
    assert Counter(element.tag for element in _everything(attacked.root))["script"] == 1
    assert len(attacked.root.all("img")) == len(page.root.all("img"))
    assert attacked.root.whole_text.count(HOSTILE) >= 9, "title, heading, the line below, time, layers, reasons, versions, pictures"
    assert json.loads(attacked.root.all("pre")[-1].text)["model"]["path"] == HOSTILE


def test_a_page_knows_no_undefined_names(monkeypatch: pytest.MonkeyPatch, reported: Reported) -> None:
    monkeypatch.setattr(module, "_TABLES", {})
    with pytest.raises(Exception, match=r"undefined|no attribute"):
        report_page(reported.bundle, Evidence())


# Colours


def _themes() -> list[dict[str, str]]:
    """The variables of the light and of the dark theme."""
    css = (Path(module.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    )
    assert light.keys() == dark.keys()
    return [light, dark]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_stand_out(theme: int) -> None:
    colours = _themes()[theme]
    for text in ("--ink", "--faint", "--link"):
        for paper in ("--page", "--card"):
            assert _contrast(colours[text], colours[paper]) >= PLAIN_TEXT, text
    series = [value for name, value in colours.items() if name.startswith("--series-")]
    assert len(series) == 8
    for value in series:
        assert _contrast(value, colours["--card"]) >= 3, value


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["normal", "protan", "deutan"])
def test_the_first_colours_differ_for_every_eye(theme: int, kind: str) -> None:
    """The first four, the most that bundles usually have; markers tell all of them apart."""
    seen = [_seen(_themes()[theme][f"--series-{place}"], kind) for place in range(1, 5)]
    distances = [sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 for i, one in enumerate(seen) for other in seen[:i]]
    assert min(distances) > 0.12


def _linear(colour: str) -> list[float]:
    """Linear light of an sRGB colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _contrast(one: str, other: str) -> float:
    """WCAG's ratio of relative luminances."""
    luminances = sorted(sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), _linear(colour), strict=True)) for colour in (one, other))
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


CONFUSION: dict[str, list[list[float]]] = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
"""Linear RGB as seen with a kind of colour blindness (Machado, Oliveira and Fernandes 2009, severity 1)."""


def _seen(colour: str, kind: str) -> list[float]:
    return [sum(w * part for w, part in zip(row, _linear(colour), strict=True)) for row in CONFUSION[kind]]
