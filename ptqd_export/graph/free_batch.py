"""Find out whether a traced graph takes any batch and, if not, which line of the network fixed it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from engines.errors import UsageError

SHAPES = "torch.fx.experimental.symbolic_shapes"
"""Logger of torch that reports each condition on a free size, with the line that needs it."""


def check_batch(graph: ir.Model, module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any) -> None:
    """Refuse a graph whose batch is fixed: the exporter turns a size that the network reads as a Python number into a constant.

    Raises:
        UsageError: the first axis of an input has a fixed size.
    """
    fixed = [value.name for value in graph.graph.inputs if value.shape is not None and isinstance(value.shape[0], int)]
    if fixed:
        raise UsageError(
            "The network fixes the batch when it is traced, so its graph could not take other batches.",
            found=_line(module, inputs, dynamic_shapes),
            expected="a network that takes any number of samples",
            mend="read the batch as x.shape[0], without len(), int() or a comparison, or let -1 stand for it in reshape and view",
        )


def _line(module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any) -> str:
    """Trace once more; return the line that fixes the batch, as torch reports it."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "[guard added]" in str(record.msg) and isinstance(record.args, tuple):
                lines.append(str(record.args[2]).strip("() ").rpartition("/")[2])

    logger, handler = logging.getLogger(SHAPES), Lines()
    level, propagates, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes)
    except Exception:  # the lines are what is wanted: the constraint that is violated raises
        pass
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
    return lines[0] if lines else "a size that depends on the batch"
