"""The `ptqd-export` command line: what it prints, its exit codes, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result

import engines.cli
from engines.terminal.command_line import CommandLine
from ptqd_export.cli import main
from ptqd_export.commands import guessed_target
from ptqd_export.commands.guessed_target import GuessedTarget
from ptqd_export.plan import Plan, PlanFile

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[2]
CONFIG = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1}
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "diffusers", "scipy", "rich")


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    (folder / "unet" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return folder


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PlanFile, bool]]:
    """What `build` was asked for, in place of building it."""
    seen: list[tuple[PlanFile, bool]] = []

    def run_build(plan_file: PlanFile, *, fresh: bool, cluster: object, on_progress: object) -> None:
        assert cluster is None
        assert callable(on_progress)
        seen.append((plan_file, fresh))

    for name, function in {"run_build": run_build, "summary": lambda *_given: None}.items():
        module = ModuleType(f"ptqd_export.stages.{name}")
        module.__dict__["run_build" if name == "run_build" else "print_summary"] = function
        monkeypatch.setitem(sys.modules, f"ptqd_export.stages.{name}", module)
    runtimes = ModuleType("ptqd_export.commands.measure_runtimes")
    runtimes.__dict__.update(measure_runtimes=lambda *_given, **_options: None, print_runtimes=lambda _: None)
    monkeypatch.setitem(sys.modules, runtimes.__name__, runtimes)
    return seen


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["init", "--help"], ["schema", "--help"], ["build", "--help"], ["schedule", "--help"], ["bisect", "--help"], ["schema"]],
)
def test_answers_without_importing_a_framework(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from ptqd_export.cli import main\n"
        "code = main(sys.argv[1:], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr in ("[] 0\n", "[] None\n")
    assert len(done.stdout) > 100


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    lines = _run("-h").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == [
        "init",
        "build",
        "schedule",
        "engines",
        "inspect",
        "report",
        "extractor",
        "bisect",
        "schema",
    ]
    assert lines[1] == "  build      Build the bundle that a plan describes."


@pytest.mark.parametrize("command_line", [main, engines.cli.main])
def test_purpose_of_every_command_fits_a_line_of_80_columns(command_line: CommandLine) -> None:
    text = CliRunner().invoke(command_line, ["--help"], terminal_width=80).stdout
    lines = text.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(command_line.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines), text


def test_schema_is_that_of_the_plan() -> None:
    result = _run("schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert schema == Plan.model_json_schema()
    assert set(schema["required"]) == {"model", "sampler", "precisions", "target", "output"}


def test_init_writes_a_plan_that_build_accepts(model: Path, builds: list[tuple[PlanFile, bool]]) -> None:
    path = model.parent / "plan.json"
    result = _run("init", "--model", model, "--target", "onnxruntime", "-o", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"wrote {path}; review it, then run: ptqd-export build --plan {path}\n"
    assert _run("build", "--plan", path).exit_code == 0
    ((plan_file, fresh),) = builds
    assert plan_file.model_path == model
    assert plan_file.plan.sampler.guidance == 1.0
    assert not fresh


def test_init_tells_the_target_that_it_guessed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessed_target, "guess_target", lambda: GuessedTarget("tensorrt", "this is a test"))
    path = model.parent / "plan.json"
    result = _run("init", "--model", model, "-o", path)
    assert result.stdout.splitlines() == [
        "target: tensorrt, because this is a test; --target chooses another",
        f"wrote {path}; review it, then run: ptqd-export build --plan {path}",
    ]
    assert json.loads(path.read_text())["target"]["name"] == "tensorrt"


def test_quick_init_says_what_the_plan_gives_up(model: Path) -> None:
    path = model.parent / "plan.json"
    result = _run("init", "--model", model, "--target", "onnxruntime", "-o", path, "--quick")
    assert result.exit_code == 0
    note, wrote = result.stdout.splitlines()
    assert note.startswith("quick: w8a8 instead of w8a8 and w4a8, 10 sampling steps instead of 20")
    assert wrote.startswith(f"wrote {path}")
    assert json.loads(path.read_text())["precisions"] == ["w8a8"]


def test_init_writes_plan_json_in_the_current_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert _run("init", "--model", "digits", "--target", "onnxruntime").exit_code == 0
    assert json.loads(Path("plan.json").read_text())["model"]["path"] == "digits"


def test_init_overwrites_only_when_forced(model: Path) -> None:
    path = model.parent / "plan.json"
    path.write_text("precious")
    arguments = ("init", "--model", model, "--target", "onnxruntime", "-o", path)
    result = _run(*arguments)
    assert result.exit_code == 2
    assert f"error: The output file already exists.\n  found:    {path}" in result.stderr
    assert path.read_text() == "precious"
    assert _run(*arguments, "--force").exit_code == 0
    assert path.read_text() != "precious"


def test_init_without_the_model_folder_is_an_error_of_usage(tmp_path: Path) -> None:
    result = _run("init", "--model", tmp_path / "none", "--target", "onnxruntime", "-o", tmp_path / "plan.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: The model folder is missing.\n  found:    no folder {tmp_path / 'none'}\n  expected: ")
    assert not (tmp_path / "plan.json").exists()


def test_build_hands_over_output_and_fresh(model: Path, builds: list[tuple[PlanFile, bool]]) -> None:
    path = model.parent / "plan.json"
    _run("init", "--model", model, "--target", "onnxruntime", "-o", path)
    assert _run("build", "--plan", path, "--output", "elsewhere", "--fresh").exit_code == 0
    ((plan_file, fresh),) = builds
    assert plan_file.output_path == Path("elsewhere")
    assert plan_file.plan.output == "build/digits"
    assert fresh


def test_build_without_output_uses_the_plans(model: Path, builds: list[tuple[PlanFile, bool]]) -> None:
    path = model.parent / "plan.json"
    _run("init", "--model", model, "--target", "onnxruntime", "-o", path)
    _run("build", "--plan", path)
    assert builds[0][0].output_path == model.parent / "build" / "digits"


def test_build_refuses_a_wrong_plan_before_it_starts(tmp_path: Path, builds: list[tuple[PlanFile, bool]]) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"corection": {}}')
    result = _run("build", "--plan", path)
    assert result.exit_code == 2
    assert f"error: {path} is not a valid plan\n" in result.stderr
    assert '  corection: unknown key; did you mean "correction"?\n' in result.stderr
    assert "Traceback" not in result.stderr
    assert builds == []


def test_build_without_the_plan_is_an_error_of_usage(tmp_path: Path) -> None:
    result = _run("build", "--plan", tmp_path / "none.json")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: The plan is missing.\n  found:    no file {tmp_path / 'none.json'}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["init"], "Missing option '--model'"),
        (["build"], "Missing option '--plan'"),
        (["biuld"], "No such command 'biuld'. Did you mean 'build'?"),
        (["build", "--plan", "x", "--frsh"], "No such option '--frsh'. Did you mean '--fresh'?"),
        (["schedule", "x", "--mode", "Sined"], 'Did you mean "signed"?'),
        (["init", "--model", "x", "--target", "TensorRT"], 'did you mean "tensorrt"?'),
    ],
)
def test_wrong_command_line_exits_2(arguments: list[str], complaint: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


WITHOUT_EXPORT = """
import json, sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in json.loads(sys.argv[1]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from ptqd_export.cli import main
for arguments in json.loads(sys.argv[2]):
    try:
        main(arguments)
    except SystemExit as end:
        print(arguments[0], end.code, file=sys.stderr)
"""
"""Runs commands one after the other in an interpreter without some packages."""


def test_commands_without_the_extra_export_name_it(model: Path, tiny: TinyBundle, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert _run("init", "--model", model, "--target", "onnxruntime", "-o", plan).exit_code == 0
    bundle = str(tiny.folder)
    commands = [
        ["init", "--model", str(model), "-o", str(tmp_path / "other.json")],
        ["build", "--plan", str(plan)],
        ["bisect", bundle, "--precision", "w8a8"],
        ["engines", bundle],
    ]
    hidden = json.dumps([name for name in HEAVY if name not in ("onnxruntime", "rich")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXPORT, hidden, json.dumps(commands)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 4 * len(commands), done.stderr
    for index, (name, *_) in enumerate(commands):
        error, found, mend, end = lines[4 * index : 4 * index + 4]
        assert error == "error: A package that this command needs is not installed."
        assert found.startswith("  found:    no module ")
        assert mend == "  mend:     pip install 'ptqd-export[export]'"
        assert end == f"{name} 3"


def _leaves(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield from _leaves(command, *names, name) if isinstance(command, click.Group) else [(*names, name)]


@pytest.mark.parametrize(
    ("program", "names"), [(group, names) for group in (main, engines.cli.main) for names in _leaves(group)], ids=lambda value: str(value)
)
def test_every_command_takes_the_shared_options(program: CommandLine, names: tuple[str, ...]) -> None:
    text = CliRunner().invoke(program, [*names, "-h"]).stdout
    assert all(option in text for option in ("-v, --verbose", "-q, --quiet", "-h, --help"))


@pytest.mark.parametrize(("program", "name"), [(main, "ptqd-export"), (engines.cli.main, "ptqd-run")])
def test_completion_script_is_printed_and_completes_commands(
    program: CommandLine, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    answers = []
    for instruction in ("zsh_source", "zsh_complete"):
        for key, value in {variable: instruction, "COMP_WORDS": f"{name} ", "COMP_CWORD": "1"}.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(SystemExit) as end:
            program.main([], prog_name=name)
        assert end.value.code == 0
        answers.append(capsys.readouterr().out)
    assert f"#compdef {name}" in answers[0]
    assert set(program.commands) <= set(answers[1].splitlines())
