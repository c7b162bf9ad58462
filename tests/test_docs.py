"""The pages under `docs/` against the code that they describe: fields, defaults, examples, commands, links and files."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

import engines.bundle.manifest
import engines.chain.schedule
import engines.cli
import ptqd_export.cli
import ptqd_export.plan
from calib.correction.moments import PLAIN, Moments
from calib.correction.noise_fit import fit_noise
from calib.correction.step_fit import CorrectionChoice, fit_step
from calib.walk.budget import Menu
from calib.walk.sensitivity import Probes
from calib.walk.walk import StepResult
from engines.chain.correction import correct
from engines.chain.schedule import Step, Strict
from engines.chain.update import update
from engines.errors import BundleError, MissingBackendError, PtqdError, UsageError
from engines.host.interruption import INTERRUPTED, TERMINATED
from engines.samplers import SAMPLERS, NoiseSchedule, compile_sampler
from ptqd_export.plan import Plan, Section
from ptqd_export.records.frontier_file import Frontier
from ptqd_export.records.statistics_file import statistics, step_record

ROOT = Path(__file__).parents[1]
DOCS = (
    *(page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs").glob("*.md"))),
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
PAGES = [page for page in (*DOCS, "README.md") if page in DOCS or (ROOT / page).exists()]
COMMAND_LINES: Mapping[str, click.Group] = {"ptqd-export": ptqd_export.cli.main, "ptqd-run": engines.cli.main}
STEP = 12

Row = Mapping[str, str]


def _text(page: str) -> str:
    return (ROOT / page).read_text()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def _table(lines: list[str]) -> list[Row]:
    header, _, *rows = (_cells(line) for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _field_tables(page: str) -> dict[str, list[Row]]:
    """The tables below `Fields of NAME:`, by name."""
    found = re.findall(r"^Fields of (.+):\n\n((?:\|.*\n)+)", _text(page), flags=re.MULTILINE)
    return {name.strip("`"): _table(rows.splitlines()) for name, rows in found}


def _names(rows: list[Row]) -> list[str]:
    return [row["field"].strip("`") for row in rows]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _text(page), flags=re.MULTILINE | re.DOTALL)


def _code(page: str) -> Iterator[str]:
    """Everything set as code: spans, and the lines of fenced and indented blocks."""
    prose = re.sub(r"^```.*?^```$", "", _text(page), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", prose)
    yield from re.findall(r"^ {4}(.+)$", prose, flags=re.MULTILINE)
    for block in re.findall(r"^```\w*\n(.*?)^```$", _text(page), flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


TABLES = {
    name: rows
    for page in ("docs/models.md", "docs/onnx-models.md", "docs/plan.md", "docs/bundle.md", "docs/evaluation.md", "docs/compare.md")
    for name, rows in _field_tables(page).items()
}
CLASSES = [name for name in TABLES if "." in name]


def _class(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


# Fields and defaults


@pytest.mark.parametrize("path", CLASSES)
def test_the_table_of_a_class_has_its_fields_in_their_order(path: str) -> None:
    documented = _class(path)
    fields = documented.model_fields if issubclass(documented, BaseModel) else [field.name for field in dataclasses.fields(documented)]
    assert _names(TABLES[path]) == list(fields)


def test_every_section_of_the_plan_and_every_part_of_the_bundle_has_a_table() -> None:
    contracts = [(ptqd_export.plan, Section), (engines.bundle.manifest, Strict), (engines.chain.schedule, Strict)]
    stored = {
        f"{module.__name__}.{name}"
        for module, base in contracts
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if f"{kind.__module__}.".startswith(f"{module.__name__}.") and issubclass(kind, base) and kind is not base
    }
    assert len(stored) > 15
    assert stored <= set(CLASSES)


SECTIONS = [path for path in CLASSES if path.startswith("ptqd_export.plan.")]


@pytest.mark.parametrize("path", SECTIONS)
def test_documented_defaults_are_those_of_the_plan(path: str) -> None:
    section = _class(path)
    assert issubclass(section, BaseModel)
    for row, (name, field) in zip(TABLES[path], section.model_fields.items(), strict=True):
        if field.is_required():
            assert row["default"] == "required", name
            continue
        documented = json.loads(row["default"].strip("`"))
        if isinstance(field.default, BaseModel):
            assert documented == {}, name
            assert type(field.default)() == field.default, name
        else:
            assert json.dumps(documented) == json.dumps(to_jsonable_python(field.default)), name


@pytest.mark.parametrize("path", SECTIONS)
def test_documented_values_are_those_that_the_plan_takes(path: str) -> None:
    section = _class(path)
    for row, (name, schema) in zip(TABLES[path], section.model_json_schema()["properties"].items(), strict=True):
        alternatives = schema.get("anyOf", [schema])
        literals = {value for one in alternatives for value in one.get("enum", [one["const"]] if "const" in one else [])}
        if "null" in [one.get("type") for one in alternatives]:
            literals.add(None)
        if name == "name" and path.endswith("SamplerSection"):
            literals = set(SAMPLERS)
        for value in literals:
            assert f"`{json.dumps(value)}`" in row["values"], f"{name}: {value}"


def test_the_page_of_the_samplers_has_a_row_for_each() -> None:
    lines = [line for line in _text("docs/samplers.md").splitlines() if line.startswith("| `")]
    named = [_cells(line)[0].strip("`") for line in lines]
    assert named[: len(SAMPLERS)] == list(SAMPLERS)
    for name, line in zip(SAMPLERS, lines, strict=False):
        assert (
            "none" if SAMPLERS[name].eta == 0 and not SAMPLERS[name].any_eta else "full" if SAMPLERS[name].eta == 1 else "`eta`"
        ) in _cells(line)[3]


def test_the_fields_of_a_statistics_file_are_documented() -> None:
    values = np.random.default_rng(0).standard_normal((3, 8, 1, 4))
    moments = Moments.of(PLAIN, values, np.arange(8) % 4)
    correction = fit_step(moments, compile_sampler("ddim", 2, 1.0, NoiseSchedule(clip_sample=False)).step(0), CorrectionChoice())
    result = StepResult(0, 500.0, "w8a8", {"w8a8": moments}, {"w8a8": fit_noise(moments)}, {"w8a8": correction}, {})
    record = step_record(result, "w8a8", 1.0)
    assert _names(TABLES["a statistics file"]) == list(statistics("w8a8", "onnxruntime", 1.0, [record], [], attention=[]))
    assert _names(TABLES["a step's record"]) == list(record)
    assert _names(TABLES["its moments"]) == list(record["moments"])


def test_the_fields_of_a_frontier_file_are_documented() -> None:
    probes = Probes.of_every_step(("w8a8",), np.ones((1, 1, 1, 1, 1)))
    record = Frontier("time", Menu.of(probes, {"w8a8": 0.5}), probes, [("uniform", ("w8a8",))]).record()
    assert _names(TABLES["a frontier file"]) == list(record)
    assert _names(TABLES["a frontier's chain"]) == list(record["chains"][0])


def _constant(path: str, name: str) -> object:
    for node in ast.parse(_text(path)).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [name]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


def test_documented_constants_are_those_of_the_code() -> None:
    rows = re.search(r"^\| constant \|.*\n(?:\|.*\n)+", _text("docs/method.md"), flags=re.MULTILINE)
    assert rows is not None
    constants = _table(rows[0].splitlines())
    assert len(constants) > 5
    for row in constants:
        path, name, value = (row[column].strip("`") for column in ("where", "constant", "value"))
        assert _constant(path, name) == ast.literal_eval(value), name


def test_documented_exit_codes_are_those_of_the_command_lines() -> None:
    rows = re.search(r"^\| code \|.*\n(?:\|.*\n)+", _text("docs/commands.md"), flags=re.MULTILINE)
    assert rows is not None
    kinds = (PtqdError, BundleError, UsageError, MissingBackendError)
    assert [int(row["code"]) for row in _table(rows[0].splitlines())] == sorted(
        {0, INTERRUPTED, TERMINATED, *(kind.exit_code for kind in kinds)}
    )


# Examples


def _examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in _blocks("docs/plan.md", "json")]


def test_example_plans_are_valid() -> None:
    examples = _examples()
    assert len(examples) == 3
    for example in examples:
        plan = Plan.model_validate(example)
        assert Plan.model_validate(json.loads(plan.resolved_json())) == plan


def _without_one_key(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, inner in value.items():
        yield {name: other for name, other in value.items() if name != key}
        if isinstance(inner, dict):
            yield from (value | {key: shorter} for shorter in _without_one_key(inner))


def test_the_shortest_plan_can_lose_no_key() -> None:
    shorter_plans = list(_without_one_key(_examples()[0]))
    assert len(shorter_plans) == 9
    for shorter in shorter_plans:
        with pytest.raises(ValidationError):
            Plan.model_validate(shorter)


def _documented_step() -> dict[str, Any]:
    (block,) = _blocks("docs/bundle.md", "json")
    step: dict[str, Any] = json.loads(block)
    return step


def test_the_worked_step_has_the_coefficients_of_its_sampler() -> None:
    step = Step.model_validate(_documented_step(), strict=False)
    row = compile_sampler("ddim", 20, 1.0, NoiseSchedule(clip_sample=False)).step(STEP)
    assert step.step == STEP
    assert (step.timestep, step.history_coeffs, step.input_scale, step.clip) == (row.timestep, (), row.input_scale, row.clip)
    documented = (step.x_coeff, step.out_coeff, *step.prediction_coeffs, step.sigma)
    assert documented == pytest.approx((row.x_coeff, row.out_coeff, *row.prediction_coeffs, row.sigma), abs=5e-7)


def test_the_step_by_hand_is_what_the_run_time_computes() -> None:
    (block,) = _blocks("docs/bundle.md", "python")
    example = doctest.DocTestParser().get_doctest(block, {"step": _documented_step()}, "bundle.md", None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example, clear_globs=False) == (0, block.count(">>> "))
    by_hand = SimpleNamespace(**example.globs)
    step = Step.model_validate(by_hand.step, strict=False)
    correction = step.corrections[step.precision]
    x, q = (np.full((1, 1, 1, 1), value, dtype=np.float32) for value in (by_hand.x, by_hand.q))
    mean, history = update(x, correct(q, x, correction.gain, correction.offset, correction.state_gain), step, [])
    assert history == []
    assert float(mean.item() + correction.sigma_corrected * by_hand.z) == pytest.approx(by_hand.next_x, abs=1e-6)


# Commands, links, files


def _commands(page: str) -> list[tuple[str, list[str]]]:
    """Program and arguments of every command that a page shows."""
    found = [match for code in _code(page) for match in re.findall(r"\b(ptqd-export|ptqd-run) +([^#|]+)", code)]
    return [(program, arguments.split()) for program, arguments in found]


def _options(command: click.Command) -> set[str]:
    return {"--help"} | {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_the_options_that_are_shown(page: str) -> None:
    for program, (first, *rest) in _commands(page):
        group = COMMAND_LINES[program]
        known = _options(group)
        if not first.startswith("-"):
            assert first in group.commands, f"{program} {first}"
            command = group.commands[first]
            known = _options(command.commands[rest[0]] if isinstance(command, click.Group) and rest else command)
        shown = {word for word in (first, *rest) if word.startswith("-")}
        assert shown <= known, f"{program} {first} {' '.join(rest)}"


def test_the_pages_show_commands() -> None:
    shown = {(program, arguments[0]) for page in PAGES for program, arguments in _commands(page)}
    assert {("ptqd-export", "build"), ("ptqd-export", "init"), ("ptqd-export", "schema"), ("ptqd-run", "sample")} <= shown


@pytest.mark.parametrize(
    "page", ["docs/method.md", "docs/models.md", "docs/bundle.md", "docs/plan.md", "docs/tensorrt.md", "docs/compare.md", "CHANGELOG.md"]
)
def test_options_named_alone_are_those_of_some_command(page: str) -> None:
    known = {option for group in COMMAND_LINES.values() for command in (group, *group.commands.values()) for option in _options(command)}
    alone = {code.split()[0] for code in _code(page) if code.startswith("--")}
    assert alone <= known


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of the forges: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _links(page: str) -> list[str]:
    links: list[str] = re.findall(r"\]\(([^)\s]+)\)", _text(page))
    return [link for link in links if not link.startswith(("https://", "http://"))]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_a_file_and_a_heading(page: str) -> None:
    for link in _links(page):
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in _anchors(path), link


def test_the_pages_have_links() -> None:
    assert {page for page in DOCS if _links(page)} >= {"docs/method.md", "docs/bundle.md", "docs/plan.md", "docs/architecture.md"}


FOLDERS = "engines|calib|ptqd_export|tools|tests|docs"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(rf"(?<![\w./<-])((?:{FOLDERS})/[\w./-]*+)(?!<)", _text(page))
    missing = [name for name in named if not (ROOT / name.rstrip(".")).exists()]
    assert missing == []


def test_the_pages_name_files() -> None:
    named = {name for page in DOCS for name in re.findall(rf"`((?:{FOLDERS})/[\w./]+\.py)`", _text(page))}
    assert len(named) > 40


def _defines(path: Path, name: str) -> bool:
    return any(
        re.search(rf"^{form}", path.read_text(), flags=re.MULTILINE)
        for form in (rf"class {name}\b", rf"def {name}\b", rf"{name} ?[:=]", rf" *from .* import .*\b{name}\b")
    )


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_classes_that_are_named_exist(page: str) -> None:
    for dotted in re.findall(rf"`((?:{FOLDERS})(?:\.\w+)+)`", _text(page)):
        *folders, last = dotted.split(".")
        folder = ROOT.joinpath(*folders)
        module = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        assert (
            (folder / f"{last}.py").exists() or (folder / last / "__init__.py").exists() or (module.exists() and _defines(module, last))
        ), dotted
