"""Networks in pieces: writes a network into a bundle both whole and cut into its body and its embeddings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import PiecesRecord
from engines.chain.noise import NoiseSource
from engines.errors import PtqdError
from engines.networks.engine_bank import EngineBank
from engines.untrusted.external_data import graph_files
from ptqd_export.graph.passes.embedding_cut import cut_embeddings

CHECKED_TIMESTEP = 500.0
"""Timestep of the check. Any would do: the pieces give the same as the whole graph at every timestep."""


def write_in_pieces(source: Path, path: Path) -> PiecesRecord | None:
    """Write a graph, and its network in pieces beside it. All of them share one file of weights.

    Returns:
        The names of the pieces, relative to the graph's folder; None if no embeddings can be cut off, and the graph is copied unchanged.
    """
    cut = cut_embeddings(ir.load(source))
    if cut is None:
        for file in graph_files(source):
            shutil.copyfile(file, path.with_name(file.name))
        return None
    ir.save(ir.load(source), path, external_data=f"{path.name}.data")
    cut = cut_embeddings(ir.load(path))  # again, because the weights now lie in the file that the pieces refer to
    assert cut is not None
    names = {piece: f"{path.stem}.{piece}.onnx" for piece in ("body", *cut.embeddings)}
    for piece, graph in {"body": cut.body, **cut.embeddings}.items():
        ir.save(graph, path.with_name(names[piece]))
    return PiecesRecord(body=names.pop("body"), embeddings=names)


def check_pieces(bundle: Bundle, noise: NoiseSource) -> None:
    """Check that the pieces of a network give the same outputs as the whole graph, bit for bit, so that measurements hold for both.

    Raises:
        PtqdError: the outputs differ.
    """
    x, row = noise.start(np.zeros(1, dtype=np.int64)), np.zeros(1, dtype=np.int64)
    for name in (name for name, record in bundle.manifest.precisions.items() if record.pieces is not None):
        whole, pieces = (EngineBank(bundle, 1.0, whole=whole)[name](x, CHECKED_TIMESTEP, row) for whole in (True, False))
        if not np.array_equal(whole, pieces):
            raise PtqdError(
                f"The network of {name} gives different outputs in pieces.",
                found=f"outputs that differ by up to {np.abs(whole - pieces).max():.3g}",
                expected="identical outputs, bit for bit",
            )
