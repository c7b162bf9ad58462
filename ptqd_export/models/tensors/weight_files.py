"""Choose the weights among the files of a model part: whole or in shards, of one variant, as safetensors or as `.bin`.

A variant is a name between the dots, such as `fp16` or `non_ema`. Names of the variant `fp16`, for the stem `model`:

    model.fp16.safetensors                       the whole
    model.fp16-00001-of-00002.safetensors        a shard; model-00001-of-00002.fp16.safetensors in older files
    model.safetensors.index.fp16.json            the index of the shards; older files name the variant one or two places earlier
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from engines.errors import PtqdError, UsageError
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.models.tensors.downloaded_file import check_downloaded

Suffix: TypeAlias = Literal[".safetensors", ".bin"]

SUFFIXES: tuple[Suffix, ...] = (".safetensors", ".bin")
"""The formats, best first."""

PREFERRED = (None, "fp16")
"""The variants that are taken although there are others, best first; None is the weights without a variant."""


@dataclass(frozen=True)
class WeightNames:
    """How a library names the files of its weights.

    Attributes:
        stems: begin of the names, by format.
        index_first: shards are read although there is a whole file.
    """

    stems: Mapping[Suffix, str]
    index_first: bool

    @property
    def expected(self) -> str:
        return " or ".join(f"{self.stems[suffix]}{suffix}" for suffix in SUFFIXES)


DIFFUSERS = WeightNames({".safetensors": "diffusion_pytorch_model", ".bin": "diffusion_pytorch_model"}, index_first=True)
TRANSFORMERS = WeightNames({".safetensors": "model", ".bin": "pytorch_model"}, index_first=False)


@dataclass(frozen=True)
class WeightChoice:
    """The chosen files of one variant in one format.

    Attributes:
        suffix: the format.
        whole: name of the file with all tensors, or None.
        index: name of the shards' index, or None. One of the two is set.
        shards: names of all shards of the variant.
    """

    suffix: Suffix
    whole: str | None
    index: str | None
    shards: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.whole,) if self.whole is not None else (str(self.index), *self.shards)


def choose_weights(names: Collection[str], library: WeightNames, where: Path | str) -> WeightChoice:
    """Choose the weights among the names of the files in a folder, as the library would, but for any variant that is alone.

    Args:
        names: names of the files.
        library: how they are named.
        where: the folder, for messages.

    Raises:
        UsageError: there are no weights, only shards without their index, or several variants of which none is preferred.
    """
    found = {(variant, suffix): choice for suffix in SUFFIXES for variant, choice in _choices(names, library, suffix).items()}
    others = sorted({variant for variant, _ in found if variant is not None} - set(PREFERRED))
    for variant in (*PREFERRED, *others[:1]):
        choice = next((found[variant, suffix] for suffix in SUFFIXES if (variant, suffix) in found), None)
        if choice is not None and (variant in PREFERRED or len(others) == 1):
            return choice
    if others:
        raise UsageError(
            "The model has several variants of its weights.",
            found=f"{where}: {', '.join(others)}",
            expected=f"one variant, or weights without one: {library.expected}",
            mend="keep the files of the variant that you want, and move the others out of the folder",
        )
    raise _no_weights(names, library, where)


def _choices(names: Collection[str], library: WeightNames, suffix: Suffix) -> dict[str | None, WeightChoice]:
    """Return the choice in one format by variant. Shards without an index are none."""
    pattern = _pattern(library.stems[suffix], suffix)
    parsed = [(name, found) for name in sorted(names) if (found := pattern.fullmatch(name))]
    choices: dict[str | None, WeightChoice] = {}
    for variant in {_variant(found) for _, found in parsed}:
        of_variant = [(name, found) for name, found in parsed if _variant(found) == variant]
        index = next((name for name, found in of_variant if found["index"]), None)
        whole = next((name for name, found in of_variant if not found["index"] and not found["shard"]), None)
        shards = tuple(name for name, found in of_variant if found["shard"])
        if index is not None and (whole is None or library.index_first):
            choices[variant] = WeightChoice(suffix, None, index, shards)
        elif whole is not None:
            choices[variant] = WeightChoice(suffix, whole, None, ())
    return choices


def _pattern(stem: str, suffix: Suffix) -> re.Pattern[str]:
    variant = [rf"(?:\.(?P<variant_{place}>[^.]+?))?" for place in range(4)]
    index = rf"(?:{variant[2]}(?P<index>\.index){variant[3]}\.json)?"
    return re.compile(rf"{re.escape(stem)}{variant[0]}(?P<shard>-\d+-of-\d+)?{variant[1]}{re.escape(suffix)}{index}")


def _variant(found: re.Match[str]) -> str | None:
    return next((value for key, value in found.groupdict().items() if key.startswith("variant") and value), None)


def _no_weights(names: Collection[str], library: WeightNames, where: Path | str) -> UsageError:
    shards = sorted(name for name in names if name.endswith(SUFFIXES) and re.search(r"-\d+-of-\d+", name))
    if shards:
        return UsageError(
            "The index of the model's shards is missing.",
            found=f"{where}: {', '.join(shards)}",
            expected=f"{library.stems['.safetensors']}.safetensors.index.json, or the one of the variant",
            mend="copy the index too, or download the model again",
        )
    others = sorted(name for name in names if name.endswith(SUFFIXES))
    return UsageError(
        "The model's weights have another name." if others else "The model has no weights that can be read.",
        found=f"{where}: {', '.join(others or sorted(names)) or 'an empty folder'}",
        expected=library.expected,
        mend="rename the file if it holds the weights of this part" if others else "save the model again with `save_pretrained`",
    )


@dataclass(frozen=True)
class WeightFiles:
    """The files with a part's tensors.

    Attributes:
        files: the whole file, or all shards that the index names.
        shard_of: name of the shard by name of the tensor; None if there is one whole file.
    """

    files: tuple[Path, ...]
    shard_of: Mapping[str, str] | None


def find_weights(folder: Path, library: WeightNames) -> WeightFiles:
    """Find the weights of a model part.

    Raises:
        UsageError: see `choose_weights`; or the files were not downloaded completely.
        PtqdError: the index of the shards is damaged.
    """
    choice = choose_weights([path.name for path in folder.iterdir()], library, folder)
    if choice.whole is not None:
        check_downloaded(folder / choice.whole)
        return WeightFiles((folder / choice.whole,), None)
    index = folder / str(choice.index)
    check_downloaded(index)
    shard_of = _read_index(index)
    files = tuple(folder / name for name in sorted(set(shard_of.values())))
    for file in files:
        check_downloaded(file)
    return WeightFiles(files, shard_of)


def _read_index(path: Path) -> dict[str, str]:
    shard_of = read_json_object(path, PtqdError).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise _damaged(path, "no weight_map")
    for name in shard_of.values():
        if not isinstance(name, str) or not name.endswith(SUFFIXES) or Path(name).name != name or "\0" in name:
            raise _damaged(path, f"a shard {name!r}")
    return shard_of


def _damaged(path: Path, found: str) -> PtqdError:
    return PtqdError(
        "The index of the model's shards is damaged.",
        found=f"{path}: {found}",
        expected="the name of a file in its folder for every tensor",
        mend="copy the model again",
    )
