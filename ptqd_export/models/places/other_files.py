"""Files that users name as their model, and that are something else. Each kind has its own message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from engines.errors import UsageError

CHECKPOINTS = (".ckpt", ".safetensors")
"""Suffixes of files that hold a whole CompVis model; its YAML lies beside the file."""

SOURCES = (
    "the trained PyTorch model: a folder written by `save_pretrained`, a CompVis checkpoint beside its YAML, "
    "an ONNX graph (model.onnx), or a function that creates the network (model.factory)"
)

_STATE = (
    "This file holds tensors, but not the network that they belong to.",
    "name a function that creates the network and loads the file as model.factory; a CompVis checkpoint must be called .ckpt",
)
_ARCHIVE = ("This file is an archive.", "unpack it, and name the folder or checkpoint in it")
_CONFIGURATION = ("This file is a configuration without weights.", "name the folder of the pipeline, or the checkpoint beside this file")

KINDS: Mapping[str, tuple[str, str]] = {
    ".onnx": (
        "This file is an ONNX graph, which has a key of its own.",
        "name it as model.onnx; `ptqd-export init --model` writes such a plan",
    ),
    ".gguf": ("This file holds weights that are already quantized.", "name the model that they were quantized from"),
    ".engine": ("This file is a built engine.", "name the model that it was built from"),
    ".plan": ("This file is a built engine.", "name the model that it was built from"),
    ".xml": ("This file is an OpenVINO graph, and a build starts from the PyTorch model.", "name the model that it was converted from"),
    ".msgpack": ("This file holds weights of Flax.", "load them with `from_pretrained(..., from_flax=True)`, and save the model again"),
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl"), _STATE),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".json", ".yaml", ".yml"), _CONFIGURATION),
}
"""What is wrong and how to mend it, by suffix."""


def refuse_file(path: Path) -> NoReturn:
    """Refuse a file that is no checkpoint, and say what it is.

    Raises:
        UsageError: always.
    """
    what, mend = KINDS.get(path.suffix.lower(), ("This kind of file is not a model that can be read.", None))
    raise UsageError(what, found=path, expected=SOURCES, mend=mend)
