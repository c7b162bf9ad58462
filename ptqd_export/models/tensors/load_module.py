"""Load a module of diffusers or transformers with the weights of a folder, in whichever files the folder has them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.errors import PtqdError, some_of
from engines.host.room import naming_full_disks
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.models.tensors.checkpoint import read_tensors
from ptqd_export.models.tensors.weight_files import WeightNames, find_weights

CONFIG = "config.json"

QUANTIZED = ("F8", "F6", "F4", "I8", "U8", "float8", "float4", "int8", "uint8", "qint", "quint")
"""How safetensors' and torch's names of the types of quantized weights begin."""


def load_module(kind: Any, folder: Path, library: WeightNames, **options: Any) -> nn.Module:
    """Load a module whose every parameter has a tensor in the folder, and which has a place for every tensor.

    Args:
        kind: class with a method `from_pretrained`.
        folder: folder with the configuration and the weights.
        library: how the library names its weights.
        options: further arguments of `from_pretrained`.

    Raises:
        UsageError: there are no weights, or it is unclear which; see `find_weights`.
        PtqdError: the weights cannot be read, or do not fit the configuration.
    """
    with _as_safetensors(folder, library) as prepared:
        _check_safetensors(prepared)
        try:
            network, told = kind.from_pretrained(prepared, use_safetensors=True, output_loading_info=True, **options)
        except Exception as error:  # the libraries wrap safetensors' errors in several types
            raise PtqdError(
                "The model's weights cannot be read.",
                found=f"{folder}: {_first_cause(error)}",
                expected="complete files with weights that fit the configuration",
                mend="copy the model again",
            ) from error
    _check_keys(folder, network, told)
    loaded: nn.Module = network
    return loaded


@contextlib.contextmanager
def _as_safetensors(folder: Path, library: WeightNames) -> Iterator[Path]:
    """Yield a temporary folder with the configuration and the chosen weights, named as the library expects them.

    Safetensors are links. Other files are converted one after the other: their tensors are mapped, so no file is held in memory.
    """
    found, stem = find_weights(folder, library), library.stems[".safetensors"]
    with tempfile.TemporaryDirectory(prefix="ptqd-weights-") as made:
        prepared = Path(made)
        config = read_json_object(folder / CONFIG, PtqdError, infinities=True)
        (prepared / CONFIG).write_text(json.dumps(config))  # the libraries take UTF-8 alone, without a byte order mark
        if found.shard_of is None:
            _put(found.files[0], prepared / f"{stem}.safetensors")
        else:
            count = len(found.files)
            names = {file.name: f"{stem}-{number + 1:05}-of-{count:05}.safetensors" for number, file in enumerate(found.files)}
            for file in found.files:
                _put(file, prepared / names[file.name])
            index = {"metadata": {}, "weight_map": {tensor: names[shard] for tensor, shard in found.shard_of.items()}}
            (prepared / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        yield prepared


def _put(file: Path, place: Path) -> None:
    if file.suffix == ".safetensors":
        place.symlink_to(file.absolute())
        return
    tensors = read_tensors(file)
    check_dtypes(file, {name: tensor.dtype for name, tensor in tensors.items()})
    with naming_full_disks(place):
        save_file(_own_storages(tensors), place, {"format": "pt"})


def _check_safetensors(folder: Path) -> None:
    """Refuse files with quantized values. A file that cannot be read is left to the library, which says why."""
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
            names = file.keys()
            check_dtypes(path.resolve(), {name: file.get_slice(name).get_dtype() for name in names})


def check_dtypes(file: Path, dtypes: Mapping[str, torch.dtype | str]) -> None:
    """Refuse tensors of a type that quantized weights have: cast to float32, they would lack their scales.

    Raises:
        PtqdError: there is such a tensor.
    """
    for name, dtype in dtypes.items():
        plain = str(dtype).removeprefix("torch.")
        if plain.startswith(QUANTIZED):
            raise PtqdError(
                "The model's weights are quantized already.",
                found=f"{file}: {name}, {plain}",
                expected="weights in float16, bfloat16, float32 or float64",
                mend="take the weights as they were trained",
            )


def _own_storages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors that are not contiguous, or share their storage with another: safetensors has neither."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone().contiguous() if storage in seen or not tensor.is_contiguous() else tensor
        seen.add(storage)
    return own


def _check_keys(folder: Path, network: nn.Module, told: Mapping[str, Collection[str]]) -> None:
    """Refuse parameters without a tensor, which would stay random, and tensors without a place, except buffers that are computed."""
    computed = {name for name, _ in network.named_buffers()}
    missing, unexpected = sorted(told["missing_keys"]), sorted(set(told["unexpected_keys"]) - computed)
    wrong = [f"{what} {some_of(names)}" for what, names in (("lack", missing), ("have a tensor more:", unexpected)) if names]
    if wrong:
        raise PtqdError(
            "The model's weights do not fit its configuration.",
            found=f"{folder}: the weights {', and '.join(wrong)}",
            expected=f"exactly the tensors of {type(network).__name__} as {CONFIG} describes it",
            mend="copy configuration and weights of the same model; or install the version of the library that saved them",
        )


def _first_cause(error: BaseException) -> str:
    """Return the first line of the original error, and what it announces: diffusers only says that loading failed."""
    while error.__context__ is not None:
        error = error.__context__
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]
