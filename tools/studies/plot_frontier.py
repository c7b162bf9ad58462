"""Plot the frontier of a bundle that was built with the policy `budget`: error of the final sample against the cost of the chain.

    python -m tools.studies.plot_frontier build/digits/statistics/onnxruntime/frontier.json frontier.png

Needs matplotlib. Points are measured errors of real chains; lines are predictions. Chains without error are left out because the axis
is logarithmic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

Chain = dict[str, Any]

COSTS = {
    "bit_operations": "bit operations of the chain",
    "time": "measured time of the chain",
    "published_time": "time of the chain by published ratios",
}
BLUE, ORANGE, GREEN, GRAY, PURPLE, RED, BLACK = "#2f6fb0", "#d9772b", "#2e8b57", "#8a8f98", "#7b52ab", "#b5403a", "#222222"
ALONE = {"precisions": (PURPLE, "precisions alone"), "reuse": (RED, "one precision with reuse")}
"""Frontiers that a part of the candidates gives, where steps may reuse features."""


def plot(record: dict[str, Any], path: Path) -> None:
    """Plot the content of a frontier file; the suffix of `path` selects the picture format."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    by_kind = {kind: [chain for chain in record["chains"] if chain["kind"] == kind] for kind in _kinds(record["chains"])}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    line = _inexact(by_kind["frontier"])
    axes.plot(*_points(line), "-o", color=BLUE, ms=4, lw=1.8, label="budget: frontier, predicted", zorder=3)
    _measured(axes, line, BLUE, "o", "budget: frontier, real chains", fill=False)
    for kind, (color, label) in ALONE.items():
        if alone := sorted(_inexact(by_kind.get(kind, [])), key=lambda chain: float(chain["cost"])):
            axes.plot(*_points(alone), ".--", color=color, ms=4, lw=1.2, label=f"{label}, predicted", zorder=2)
            _measured(axes, alone, color, "o", f"{label}, real chains", fill=False)
    _measured(axes, by_kind.get("mixture", []), GRAY, ".", "random mixtures, real chains", fill=False)
    _measured(axes, by_kind["uniform"], ORANGE, "s", "one precision at every step", name="{precisions[0]}")
    _measured(axes, by_kind["snr"], GREEN, "^", "snr, the paper's rule", name="snr")
    _measured(axes, by_kind["budget"], BLUE, "*", "chosen for the budget")
    for chain in record["fewer_steps"]:
        axes.scatter(chain["cost"], chain["measured"]["error"], s=55, marker="x", color=BLACK, lw=1.3, zorder=5)
        text = "{precision}, {steps} steps of {sampler}".format(**chain)
        axes.annotate(text, (chain["cost"], chain["measured"]["error"]), xytext=(8, 6), textcoords="offset points", fontsize=8, color=BLACK)
    axes.set(yscale="log", xlabel=f"{COSTS[record['cost']]}, as a share of full precision's")
    if record["cost"] == "bit_operations":  # bit operations spread over decades; times lie close together
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("mean square error of a sample (geometric mean)")
    axes.set_title(_title(record["prediction"]), loc="left", fontsize=10, color="#444444")
    axes.grid(which="major", color="#e3e5e8", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    figure.savefig(path, dpi=160)


def _kinds(chains: Iterable[Chain]) -> dict[str, None]:
    return dict.fromkeys(chain["kind"] for chain in chains)


def _inexact(chains: Iterable[Chain]) -> list[Chain]:
    """Chains with an error above zero, which a logarithmic axis can show."""
    return [chain for chain in chains if chain["predicted_error"] > 0]


def _points(chains: Iterable[Chain]) -> tuple[list[float], list[float]]:
    found = list(chains)
    return [chain["cost"] for chain in found], [chain["predicted_error"] for chain in found]


def _measured(axes: Any, chains: Iterable[Chain], color: str, marker: str, label: str, *, fill: bool = True, name: str = "") -> None:
    """Draw measured chains as points, each labelled with `name` formatted from the chain."""
    found = [chain for chain in _inexact(chains) if chain["measured"]]
    costs, errors = [chain["cost"] for chain in found], [chain["measured"]["error"] for chain in found]
    size = 170 if marker == "*" else 55
    axes.scatter(costs, errors, s=size, marker=marker, ec=color, fc=color if fill else "white", lw=1.3, label=label, zorder=4 + fill)
    for chain, cost, error in zip(found, costs, errors, strict=True):
        axes.annotate(name.format(**chain), (cost, error), xytext=(8, 6), textcoords="offset points", fontsize=9, color=color)


def _title(prediction: Chain) -> str:
    if prediction["pearson"] is None:
        return "predicted by probes"
    return (
        f"prediction against {prediction['chains']} real chains of {prediction['samples']} samples: "
        f"Pearson {prediction['pearson']:.3f}, Spearman {prediction['spearman']:.3f} (of logarithms)"
    )


@click.command()
@click.argument("frontier", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(frontier: Path, output: Path) -> None:
    """Plot FRONTIER, a bundle's frontier.json, to OUTPUT, such as frontier.png or frontier.svg."""
    plot(json.loads(frontier.read_text()), output)


if __name__ == "__main__":
    main()
