"""Render content, plots and pictures into one HTML file that loads nothing. Every string from the bundle is escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from engines.bundle.bundle import Bundle
from ptqd_export.measuring.measured_with import named
from ptqd_export.report import bundle_tables, headlines, judged_tables
from ptqd_export.report.content import Content
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.findings import comparison, evaluation
from ptqd_export.report.pictures import KINDS, MOST, SEED, stored_pictures
from ptqd_export.report.plots import step_plots, timeline

SMALL = 128
"""Pictures of fewer pixels a side are enlarged without smoothing."""

_SECTIONS = {
    "pictures": "Pictures",
    "steps": "Steps",
    "layers": "Layers",
    "evaluations": "Evaluation",
    "comparisons": "Comparison",
    "again": "Reproduce",
}

_TABLES = {
    "precisions": bundle_tables.precision_table,
    "chain": bundle_tables.chain_table,
    "chosen": judged_tables.chosen_table,
    "proposals": judged_tables.proposal_table,
    "layers": bundle_tables.layer_table,
    "attention": bundle_tables.attention_table,
    "reasons": bundle_tables.reason_table,
    "schedules": bundle_tables.schedule_table,
    "versions": bundle_tables.version_table,
}

_COMMANDS = (
    "ptqd-export build --plan plan.json",
    f"ptqd-run sample BUNDLE --num {MOST} --seed {SEED} --output corrected",
    f"ptqd-run sample BUNDLE --num {MOST} --seed {SEED} --output uncorrected --correction off",
    f"ptqd-run sample BUNDLE --num {MOST} --seed {SEED} --output fp32 --precision fp32 --correction off",
    "ptqd-run compare BUNDLE --json comparison.json",
    "ptqd-run evaluate BUNDLE --num 50000 --reference REFERENCE.npz --features MODEL.onnx --json evaluation.json",
    "ptqd-export report BUNDLE --comparison comparison.json --evaluation evaluation.json",
)


def report_page(bundle: Bundle, evidence: Evidence) -> str:
    """Return the whole file, in ASCII. The same bundle and evidence give the same bytes.

    Raises:
        BundleError: a file of the bundle is damaged.
    """
    content, pictures, script = Content(bundle, evidence), stored_pictures(bundle), _source("sort.js")
    optional = {"pictures": pictures, "evaluations": evidence.evaluations, "comparisons": evidence.comparisons}
    page = _template().render(
        title=headlines.title(content),
        subtitles=headlines.subtitle(content),
        sections=[(anchor, name) for anchor, name in _SECTIONS.items() if optional.get(anchor, True)],
        headlines=headlines.headlines(content),
        pictures=pictures,
        enlarged=max(bundle.manifest.model.image_shape[-2:]) < SMALL,
        kinds=KINDS,
        row_word=content.row_word,
        seed=SEED,
        measured_on=named(bundle.manifest.measured_on),
        advice=bundle_tables.advice(content),
        timeline=timeline(content.chain, content.precisions[::-1]),
        plots=step_plots(content.chain, tuple(content.measured)),
        numbers=bundle_tables.series_tables(content),
        tables={name: make(content) for name, make in _TABLES.items()},
        evaluations=[evaluation(result) for result in evidence.evaluations],
        comparisons=[comparison(result) for result in evidence.comparisons],
        commands=_COMMANDS,
        plan=bundle.read("plan.json").decode(errors="replace"),
        style=Markup(_source("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _source(name: str) -> str:
    loader = _template().environment.loader
    assert loader is not None
    return loader.get_source(_template().environment, name)[0]


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("ptqd_export.report", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html")
