"""Networks in pieces: beside a graph that goes into a bundle, the same network cut into its body and its embeddings."""

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
"""One in the middle; pieces give what the whole gives at any."""


def write_in_pieces(source: Path, path: Path) -> PiecesRecord | None:
    """Write a graph, and its network in pieces beside it; the weights of all of them lie in one file.

    Returns:
        The names of the pieces, relative to the graph's folder; None where there is nothing to cut off, and the graph is as it was.
    """
    cut = cut_embeddings(ir.load(source))
    if cut is None:
        for file in graph_files(source):
            shutil.copyfile(file, path.with_name(file.name))
        return None
    ir.save(ir.load(source), path, external_data=f"{path.name}.data")
    cut = cut_embeddings(ir.load(path))  # once more: its weights now lie where they will be read from
    assert cut is not None
    names = {piece: f"{path.stem}.{piece}.onnx" for piece in ("body", *cut.embeddings)}
    for piece, graph in {"body": cut.body, **cut.embeddings}.items():
        ir.save(graph, path.with_name(names[piece]))
    return PiecesRecord(body=names.pop("body"), embeddings=names)


def check_pieces(bundle: Bundle, noise: NoiseSource) -> None:
    """What is measured on whole graphs is true of their pieces: they give the same, to the last bit.

    Raises:
        PtqdError: they do not.
    """
    x, row = noise.start(np.zeros(1, dtype=np.int64)), np.zeros(1, dtype=np.int64)
    for name in (name for name, record in bundle.manifest.precisions.items() if record.pieces is not None):
        whole, pieces = (EngineBank(bundle, 1.0, whole=whole)[name](x, CHECKED_TIMESTEP, row) for whole in (True, False))
        if not np.array_equal(whole, pieces):
            raise PtqdError(
                f"The network of {name} gives something else in pieces.",
                found=f"outputs up to {np.abs(whole - pieces).max():.3g} apart",
                expected="the same to the last bit",
            )
