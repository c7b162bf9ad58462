"""The streams of tokens of a transformer, and what is kept of each where a range of blocks is skipped.

Blocks of SD3 and FLUX take two streams, of the image and of the prompt, which attend to each other; in FLUX's single blocks both are one.
The blocks `A` to `B` are skipped in all streams:

1. A stream is a row of sums of a block's input and what the block adds. The input is the sum before, or is computed from it and has its
   shape.
2. What is skipped begins at the input of block `A` and, in any other stream, at the last sum that is not computed from this input. A stream
   without such a sum that joins others begins with the same concatenation of their beginnings.
3. It ends at the sum of block `B` and, in any other stream, at the last sum that is not computed from that one.
4. Streams that nothing behind needs are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import onnx_ir as ir

from ptqd_export.graph.passes.ancestry import Ancestry, needed
from ptqd_export.graph.passes.embedding_cut import row_of

Sum: TypeAlias = tuple[ir.Value, ir.Value]
"""The sum of a block's input and what the block adds, and this input."""


@dataclass(frozen=True)
class Beginning:
    """The input of blocks.

    Attributes:
        values: the values that it is made of.
        axis: axis along which several are concatenated.
    """

    values: tuple[ir.Value, ...]
    axis: int = 1

    def on(self, tape: ir.tape.Tape) -> ir.Value:
        """Return the value, whose nodes the tape takes."""
        return self.values[0] if len(self.values) == 1 else tape.op("Concat", self.values, attributes={"axis": self.axis})


@dataclass(frozen=True)
class Kept:
    """What is kept of a stream.

    Attributes:
        total: the value that is replaced in the graph that reuses features.
        before: the input of the blocks, where what they add is kept; None where the value itself is.
    """

    total: ir.Value
    before: Beginning | None = None

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of the value for one row of the batch."""
        found = row_of(self.total)
        assert found is not None, self.total
        return found

    @property
    def size(self) -> int:
        return math.prod(self.row)


@dataclass(frozen=True)
class TokenStreams:
    """The streams of a network.

    Attributes:
        graph: graph of the network.
        ancestry: which of its values are computed from which.
        sums: sums of all streams, in the order of the graph.
    """

    graph: ir.Graph
    ancestry: Ancestry
    sums: tuple[Sum, ...]

    def between(self, first: int, last: int) -> tuple[Kept, ...]:
        """Return what is kept where the blocks `first` to `last` are skipped; empty if a stream has no beginning."""
        (to, _), (_, at) = self.sums[last], self.sums[first]
        ends = [to if last in stream else self._last_without(stream, to) for stream in self._streams]
        _, _, used = needed(self.graph, {end for end in ends if end is not None})
        beginnings, kept = list[Beginning | None](), list[Kept]()
        for stream, end in zip(self._streams, ends, strict=True):
            begin = Beginning((at,)) if first in stream else self._beginning(stream, at, beginnings)
            beginnings.append(begin)
            if end is None or end not in used or begin == Beginning((end,)):
                continue
            if begin is None:
                return ()
            kept.append(Kept(end, begin))
        return tuple(kept)

    @cached_property
    def _streams(self) -> list[list[int]]:
        """The places of each stream's sums, in the order of the streams' first."""
        found = list[list[int]]()
        places = {total: place for place, (total, _) in enumerate(self.sums)}
        for place, (_, before) in enumerate(self.sums):
            other = places[before] if before in places else self._last_behind(before, place)
            own = next((stream for stream in found if other in stream), None)
            found.append([place]) if own is None else own.append(place)
        return found

    def _last_behind(self, value: ir.Value, end: int) -> int | None:
        """Return the place of the last sum of the first `end` that a value of its shape is computed from."""
        return next((place for place in range(end - 1, -1, -1) if self._is_behind(value, self.sums[place][0])), None)

    def _is_behind(self, value: ir.Value, total: ir.Value) -> bool:
        return row_of(value) == row_of(total) and self.ancestry.depends(value, total)

    def _last_without(self, stream: Sequence[int], value: ir.Value) -> ir.Value | None:
        """Return the last sum of a stream that is not computed from a value."""
        totals = (self.sums[place][0] for place in reversed(stream))
        return next((total for total in totals if total is not value and not self.ancestry.depends(total, value)), None)

    def _beginning(self, stream: Sequence[int], at: ir.Value, earlier: Sequence[Beginning | None]) -> Beginning | None:
        found = self._last_without(stream, at)
        if found is not None:
            return Beginning((found,))
        join = self.sums[stream[0]][1].producer()
        if join is None or join.op_type != "Concat":
            return None
        owners = {self.sums[place][0]: number for number, places in enumerate(self._streams) for place in places}
        begins = [earlier[owners[value]] for value in join.inputs if value in owners and owners[value] < len(earlier)]
        if len(begins) < len(join.inputs) or any(begin is None for begin in begins):
            return None
        return Beginning(
            tuple(value for begin in begins if begin is not None for value in begin.values), join.attributes.get_int("axis", 1)
        )
