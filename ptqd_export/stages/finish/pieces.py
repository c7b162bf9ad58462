"""Networks in pieces: writes a network into a bundle both whole and cut into its body and its embeddings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import PiecesRecord
from engines.chain.noise import NoiseSource
from engines.errors import PtqdError
from engines.networks.engine_bank import EngineBank
from engines.untrusted.external_data import graph_files
from ptqd_export.graph.graph_files import save_sharing, save_with_data
from ptqd_export.graph.passes.embedding_cut import CutNetwork, cut_embeddings, has_embeddings

CHECKED_TIMESTEP = 1.0
"""Timestep of the check in the last group of steps. Any would do: the pieces give the same as the whole graph at every timestep."""


@dataclass(frozen=True)
class Shared:
    """A file of weights that several graphs share: that of `graph`; None makes one beside the first of them."""

    graph: Path | None = None


def write_in_pieces(sources: Sequence[Path], paths: Sequence[Path], *, shared: Shared | None = None) -> list[PiecesRecord] | None:
    """Write the graphs of a precision, one per group of steps, and their networks in pieces beside them. All of them share one file of
    weights, and all groups share the pieces that do not take the state.

    Args:
        sources: graphs of the groups, the noisiest first.
        paths: paths of the graphs to write, in one folder.
        shared: see `write_whole`.

    Returns:
        The names of the pieces of each group, relative to the graph's folder; None if no embeddings can be cut off, and the graphs stay
        whole.
    """
    if not has_embeddings(ir.load(sources[0])):
        write_whole(sources, paths, shared=shared)
        return None
    first = paths[0]
    write_whole(sources, paths, shared=shared or Shared())
    pieces = [_write_pieces(first)]
    pieces += [_write_body(path, first, pieces[0]) for path in paths[1:]]
    return pieces


def write_whole(sources: Sequence[Path], paths: Sequence[Path], *, shared: Shared | None = None) -> None:
    """Write graphs again, one per group of steps.

    Args:
        sources: graphs of the groups, the noisiest first.
        paths: paths of the graphs to write, in one folder.
        shared: the file of weights that all of them read; None copies the graphs as they are, which keeps their names.
    """
    if shared is None:
        for file in {file for source in sources for file in graph_files(source)}:
            shutil.copyfile(file, paths[0].with_name(file.name))
        return
    whole = shared.graph
    for source, path in zip(sources, paths, strict=True):
        if whole is None:
            save_with_data(ir.load(source), path)
        else:
            save_sharing(ir.load(source), path, whole)
        whole = whole or path


def _write_pieces(path: Path) -> PiecesRecord:
    """Write the pieces of a graph whose weights lie in the file that they refer to."""
    cut = _cut(path)
    embeddings = {name: f"{path.stem}.{name}.onnx" for name in cut.embeddings}
    for name, graph in cut.embeddings.items():
        ir.save(graph, path.with_name(embeddings[name]))
    return PiecesRecord(body=_body(path, cut), embeddings=embeddings)


def _write_body(path: Path, first: Path, pieces: PiecesRecord) -> PiecesRecord:
    """Write the body of a further group's graph, and check that its embeddings are those of the first group."""
    cut = _cut(path)
    for name, graph in cut.embeddings.items():
        own = path.with_name(f"{path.stem}.{name}.onnx")
        ir.save(graph, own)
        if own.read_bytes() != first.with_name(pieces.embeddings[name]).read_bytes():
            raise PtqdError(
                f"Groups of steps of {first.stem} differ in more than activations.",
                found=f"another {name} in {path.name}",
                expected="graphs that compute the same from timestep and conditions",
                mend="this is a bug in ptqd-export: please report the model",
            )
        own.unlink()
    return pieces.model_copy(update={"body": _body(path, cut)})


def _body(path: Path, cut: CutNetwork) -> str:
    name = f"{path.stem}.body.onnx"
    ir.save(cut.body, path.with_name(name))
    return name


def _cut(path: Path) -> CutNetwork:
    cut = cut_embeddings(ir.load(path))
    assert cut is not None
    for graph in cut.embeddings.values():
        _sort_initializers(graph.graph)
    return cut


def _sort_initializers(graph: ir.Graph) -> None:
    """Bring initializers into the order of their names. Those that layers share come with the first of them, which may lie in the body."""
    values = sorted(graph.initializers.items())
    graph.initializers.clear()
    graph.initializers.update(values)


def check_pieces(bundle: Bundle, noise: NoiseSource) -> None:
    """Check that the pieces of a network give the same outputs as the whole graph, bit for bit, so that measurements hold for both.

    Raises:
        PtqdError: the outputs differ.
    """
    for name, record in bundle.manifest.precisions.items():
        if record.pieces is None:
            continue
        timesteps = (*(group.below for group in record.groups), CHECKED_TIMESTEP)  # a bound belongs to the group above it
        wholes, pieces = (_outputs(bundle, name, noise, timesteps, whole=whole) for whole in (True, False))
        for timestep, expected, found in zip(timesteps, wholes, pieces, strict=True):
            if not np.array_equal(expected, found):
                raise PtqdError(
                    f"The network of {name} gives different outputs in pieces.",
                    found=f"outputs that differ by up to {np.abs(expected - found).max():.3g} at timestep {timestep:g}",
                    expected="identical outputs, bit for bit",
                )


def _outputs(bundle: Bundle, precision: str, noise: NoiseSource, timesteps: Sequence[float], *, whole: bool) -> list[Float32]:
    """Return a network's outputs for one sample at each timestep. The network is closed before the next one opens."""
    x, row = noise.start(np.zeros(1, dtype=np.int64)), np.zeros(1, dtype=np.int64)
    network = EngineBank(bundle, 1.0, whole=whole)[precision]
    return [network(x, timestep, row) for timestep in timesteps]
