"""Load the weights of a published network from a file, without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError, first_line, some_of
from ptqd_export.models.tensors.inert_pickle import UnpicklingError

_SHOWN = 3
_COUNTER = ".num_batches_tracked"
"""Counters of batch normalization that training needs and that some files leave out."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a state dict that `torch.save` wrote in any version.

    Raises:
        UsageError: there is no such file, or it holds something else than tensors by name.
        PtqdError: the file cannot be read.
    """
    if not path.is_file():
        raise UsageError("There are no weights.", found=f"no file {path}", expected="a state dict as .pth or .safetensors")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_saved(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UsageError("The weights are not a state dict.", found=f"{path}: {type(state).__name__}", expected="tensors by name")
    return {name: value for name, value in state.items() if not name.endswith(_COUNTER)}


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a network, and put the network in evaluation mode.

    Raises:
        UsageError: names or shapes differ from the network's.
    """
    own = {name: value for name, value in network.state_dict().items() if not name.endswith(_COUNTER)}
    missing, unexpected = [name for name in own if name not in state], [name for name in state if name not in own]
    misshapen = [
        f"{name} {list(state[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong = [
        f"{kind} {some_of(names, _SHOWN)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of shape", misshapen))
        if names
    ]
    if wrong:
        raise UsageError(
            "The weights are not of this network.",
            found=f"{path}: {'; '.join(wrong)}",
            expected=f"{len(own)} tensors, such as {next(iter(own))}",
            mend="take the file that docs/evaluation.md names",
        )
    network.load_state_dict(dict(state), strict=False)
    network.eval().requires_grad_(False)


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise PtqdError("The weights cannot be read.", found=f"{path}: {error}", mend="copy the file again") from error


def _read_saved(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise PtqdError(
            "The weights cannot be read.",
            found=f"{path}: {first_line(error)}",
            expected="tensors by name; files that would run code are refused",
            mend="copy the file again, or save its state_dict() as .safetensors",
        ) from error
