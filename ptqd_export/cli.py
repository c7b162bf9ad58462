"""`ptqd-export`. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path

import click

from engines.command_line import CommandLine

PATH = click.Path(path_type=Path)


@click.group(cls=CommandLine)
def main() -> None:
    """From a trained diffusion model to corrected, quantized samples."""


@main.command()
@click.option("--model", type=PATH, required=True, help="Diffusers folder of the trained model.")
@click.option("--target", required=True, help="Runtime of the engines, such as onnxruntime.")
@click.option("-o", "--output", type=PATH, default=Path("plan.json"), show_default=True, help="Plan to write.")
@click.option("--force", is_flag=True, help="Overwrite the plan.")
def init(model: Path, target: str, output: Path, force: bool) -> None:
    """Write a starter plan with every default written out."""
    from ptqd_export.starter import write_starter_plan

    write_starter_plan(model, target, output, force=force)
    click.echo(f"wrote {output}; read it through, then: ptqd-export build --plan {output}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of plan.json."""
    import json

    from ptqd_export.plan import Plan

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    click.echo(json.dumps(dialect | Plan.model_json_schema(), indent=2))


@main.command()
@click.option("--plan", "path", type=PATH, required=True, help="Plan to build.")
@click.option("--output", type=PATH, help="Folder of the bundle, instead of the plan's.")
@click.option("--fresh", is_flag=True, help="Start over instead of resuming an interrupted build.")
def build(path: Path, output: Path | None, fresh: bool) -> None:
    """Build the bundle that a plan describes."""
    from dataclasses import replace

    from ptqd_export.plan import load_plan

    plan_file = replace(load_plan(path), output=output)
    from ptqd_export.build import run_build  # after the plan, so that a wrong plan is told before torch is imported

    run_build(plan_file, fresh=fresh)
