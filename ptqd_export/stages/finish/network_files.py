"""Writes the graphs of a precision, of the decoder and of the encoder into a bundle, at one size of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.bundle.manifest import CutRecord, NetworkGraphs, PiecesRecord
from engines.errors import PtqdError
from engines.host.files import sha256
from engines.untrusted.external_data import graph_files, is_weights_of
from ptqd_export.stages.build_context import CUT_KINDS, BuildContext, cut_path, network_graphs, stored_cuts
from ptqd_export.stages.finish.bundle_writer import BundleWriter
from ptqd_export.stages.finish.pieces import Shared


@dataclass(frozen=True)
class GraphPlace:
    """Where the graphs of one size lie.

    Attributes:
        writer: writer of the bundle.
        size: name of a further size; None for the first.
        shares: whether there are several sizes, which share the first one's files of weights.
    """

    writer: BundleWriter
    size: str | None
    shares: bool

    def name(self, name: str) -> str:
        """Return the name of a graph at this size, given that at the first: a further size has its own behind the first word."""
        folder, slash, file = name.rpartition("/")
        first, _, rest = file.partition(".")
        return name if self.size is None else f"{folder}{slash}{first}.{self.size}.{rest}"

    def shared(self, first: str) -> Shared | None:
        """Return how the graphs share their weights, given the one at the first size."""
        if self.size is not None:
            return Shared(self.writer.path(first))
        return Shared() if self.shares else None


def write_network(context: BuildContext, place: GraphPlace, folders: Mapping[str, Path], precision: str) -> list[NetworkGraphs]:
    """Write the graphs of a precision, with their pieces if the target runs networks in pieces, and with those of their cuts. Returns their
    names by group of steps.
    """
    graphs, cuts = network_graphs(folders, precision), stored_cuts(folders[precision])
    folder = f"graphs/{context.placement.name}"
    sources = [path for _, path in graphs]
    first, names = f"{folder}/{sources[0].name}", [place.name(f"{folder}/{path.name}") for path in sources]
    pieces: Sequence[PiecesRecord | None] = [None] * len(graphs)
    if context.in_pieces:
        pieces = place.writer.pieces(names, sources, place.shared(first)) or pieces
    else:
        place.writer.graphs(names, sources, place.shared(first))
    if cuts and place.size is None:
        _check_same_weights(
            graph_files(sources[0])[1:],
            {Path(name).name: file.sha256 for name, file in place.writer.files.items() if is_weights_of(name, first)},
        )
    for file in (cut_path(path, cut, kind) for path in sources for cut in cuts for kind in CUT_KINDS):
        name = f"{folder}/{file.name}"
        if place.size is None:
            place.writer.copy(name, file)
        else:
            place.writer.graphs([place.name(name)], [file], place.shared(first))

    def at_cuts(path: Path) -> dict[str, CutRecord]:
        return {
            cut: CutRecord(
                full=place.name(f"{folder}/{cut_path(path, cut, 'full').name}"),
                reuse=place.name(f"{folder}/{cut_path(path, cut, 'reuse').name}"),
                bit_operations_saved_all=found["bit_operations_saved_all"],
            )
            for cut, found in cuts.items()
        }

    return [NetworkGraphs(below, name, own, at_cuts(path)) for (below, path), name, own in zip(graphs, names, pieces, strict=True)]


def _check_same_weights(sources: Sequence[Path], written: Mapping[str, str]) -> None:
    """Check that the files of weights are those whose places the graphs of cuts refer to.

    Args:
        sources: the files of the stage that cut the graphs.
        written: hashes of the bundle's files by name.

    Raises:
        PtqdError: they are others.
    """
    if {file.name: sha256(file) for file in sources} != written:
        raise PtqdError(
            "The graphs of a cut refer to other files of weights.",
            found=f"{', '.join(written)} were written in another order",
            expected="the files of the stage that cut the graphs, byte for byte",
            mend="this is a bug in ptqd-export: please report the model",
        )
