"""Rewrites attention as ONNX's Attention operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

OPSET = 23
"""First opset with the operator. The other operators in our graphs mean the same in it as in the traced opset."""

MOST_SCORES = 2**24
"""Scores of a sample, in all heads, that one operator may compute: ONNX Runtime holds them all, here 64 MiB in float32."""

_HEADS_FIRST = (0, 2, 1, 3)
_LAST_TWO = (0, 2, 1)


class FuseAttention(ir.passes.InPlacePass):
    """Rewrites the trace of PyTorch's scaled dot product attention as `Attention`, with the heads side by side:

        Reshape(Transpose(Softmax(s Q K') V))   with Q, K, V = Transpose(Reshape(q)), ...   becomes   Attention(q, k, v)

    Attention with more than `MOST_SCORES` scores is cut along the queries, into parts that attend in turn; the last may be shorter.
    Attention with a mask is left unchanged. Requires: opset 21 or 22. Ensures: opset 23 if anything was rewritten; the arithmetic is the
    same, up to the order of float32 sums.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [match for node in model.graph if node.op_type == "Softmax" and (match := _match(node)) is not None]
        for match in found:
            match.replace(model.graph)
        if found:
            model.opset_imports[""] = max(OPSET, model.opset_imports[""])
        return ir.passes.PassResult(model, bool(found))


@dataclass(frozen=True)
class _Match:
    """Inputs [batch, tokens, heads * size], and the node that produces the output of the same form."""

    inputs: tuple[ir.Value, ...]
    heads: int
    scale: float
    last: ir.Node

    @property
    def parts(self) -> int:
        """The number of parts that the queries are cut into, the last of which may be shorter; 1 if a number of tokens is not known."""
        queries, keys = (None if value.shape is None else value.shape[1] for value in self.inputs[:2])
        if not isinstance(queries, int) or not isinstance(keys, int):
            return 1
        fewest = -(-self.heads * queries * keys // MOST_SCORES)
        return -(-queries // -(-queries // min(fewest, queries)))

    def replace(self, graph: ir.Graph) -> None:
        (old,) = self.last.outputs
        tape = ir.tape.Tape()
        counts = {"q_num_heads": self.heads, "kv_num_heads": self.heads}
        query, *rest = self.inputs
        queries = (
            [query]
            if self.parts == 1
            else tape.op_multi_out("Split", [query], attributes={"axis": 1, "num_outputs": self.parts}, num_outputs=self.parts)
        )
        outs = [tape.op("Attention", [one, *rest], attributes={**counts, "scale": self.scale}) for one in queries]
        out = outs[0] if self.parts == 1 else tape.op("Concat", outs, attributes={"axis": 1})
        out.name, out.shape, out.type = old.name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(graph, self.last, [self.last], tape.nodes, [old], [out])


def _match(softmax: ir.Node) -> _Match | None:
    """Return the attention around a Softmax; None if there is none, or if it has a mask."""
    scores, weighted = _producer(softmax.inputs[0], "MatMul"), _only_user(softmax.outputs[0], "MatMul")
    moved = None if weighted is None else _only_user(weighted.outputs[0], "Transpose")
    last = None if moved is None or not _permutes(moved, _HEADS_FIRST) else _only_user(moved.outputs[0], "Reshape")
    if scores is None or weighted is None or last is None or weighted.inputs[0] is not softmax.outputs[0]:
        return None
    (query, query_scale), (key, key_scale) = (_unscaled(value) for value in scores.inputs)
    heads = [_split_heads(value) for value in (query, _transposed(key), weighted.inputs[1])]
    inputs, counts = zip(*heads, strict=True)
    known = tuple(value for value in inputs if value is not None)
    if len(known) < 3 or len(set(counts)) > 1 or any(_rank(value) != 3 for value in (*known, last.outputs[0])):
        return None
    return _Match(known, counts[0], query_scale * key_scale, last)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return the value before it was multiplied by a constant number, and that number."""
    product = _producer(value, "Mul")
    if product is None or product.inputs[1] is None or product.inputs[1].const_value is None or product.inputs[1].const_value.size != 1:
        return value, 1.0
    return product.inputs[0], float(product.inputs[1].const_value.numpy().item())


def _transposed(value: ir.Value | None) -> ir.Value | None:
    """Return the keys before their last two axes were swapped, a swap done with heads and batch folded into one axis."""
    unfolding = _producer(value, "Reshape")
    exchange = None if unfolding is None else _producer(unfolding.inputs[0], "Transpose")
    folding = None if exchange is None or not _permutes(exchange, _LAST_TWO) else _producer(exchange.inputs[0], "Reshape")
    return None if folding is None else folding.inputs[0]


def _split_heads(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """Return a value [batch, tokens, channels] before its channels were split into heads, and the number of heads."""
    exchange = _producer(value, "Transpose")
    cut = None if exchange is None or not _permutes(exchange, _HEADS_FIRST) else _producer(exchange.inputs[0], "Reshape")
    if cut is None or cut.outputs[0].shape is None or not isinstance(cut.outputs[0].shape[2], int):
        return None, 0
    return cut.inputs[0], cut.outputs[0].shape[2]


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op else None


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op else None


def _permutes(node: ir.Node, perm: tuple[int, ...]) -> bool:
    return tuple(node.attributes["perm"].as_ints()) == perm


def _rank(value: ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)
