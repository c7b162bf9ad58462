"""Folders that users name as their model, and that hold something else, or hold the model somewhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engines.errors import UsageError, some_of
from ptqd_export.models.diffusers_folder import DENOISERS, INDEX
from ptqd_export.models.places.other_files import CHECKPOINTS, SOURCES
from ptqd_export.models.places.snapshots import is_cached_model
from ptqd_export.models.tensors.weight_files import SUFFIXES

EXPORTED = (".onnx", ".engine", ".plan")
"""Suffixes of graphs and engines that were made from a model."""

OPENVINO = "openvino_"
"""Begin of the names of exported OpenVINO files: their weights are called `.bin` too."""


def refuse_folder(path: Path) -> None:
    """Refuse a folder if it is known what it holds instead of a model.

    Raises:
        UsageError: it is an export, a part of a pipeline, or a folder around models.
    """
    if not (path / "scheduler_config.json").is_file() and (path / "config.json").is_file() and is_model(path.absolute().parent):
        raise UsageError(
            "This folder is one part of a pipeline.",
            found=path,
            expected="the folder of the whole pipeline, with its scheduler",
            mend=f"name {path.absolute().parent}",
        )
    files = [file for folder in (path, *_subfolders(path)) for file in _content(folder)]
    weights = [file for file in files if file.suffix in (*SUFFIXES, *CHECKPOINTS) and not file.name.startswith(OPENVINO)]
    exported = [file for file in files if file.suffix in EXPORTED or file.name.startswith(OPENVINO)]
    if exported and not weights:
        raise UsageError(
            "This folder holds an exported model, and a build starts from the PyTorch model.",
            found=_named(exported, path),
            expected=SOURCES,
            mend="name the model that was exported, or an ONNX graph in float as model.onnx",
        )
    if not is_model(path):
        _refuse_outer(path, [file for file in weights if file.parent == path and file.suffix in CHECKPOINTS])


def is_model(path: Path) -> bool:
    """Return whether a folder looks like a pipeline, or like a single model with its scheduler."""
    single = (path / "config.json").is_file() and (path / "scheduler_config.json").is_file()
    return single or (path / INDEX).is_file() or any((path / name / "config.json").is_file() for name in DENOISERS)


def _refuse_outer(path: Path, checkpoints: list[Path]) -> None:
    """Refuse a folder around models or checkpoints. One whose `config.json` is its own may still be described better by its reader."""
    if (path / "config.json").is_file():
        return
    models = [folder for folder in _subfolders(path) if is_model(folder) or is_cached_model(folder)]
    found = [*models, *checkpoints]
    if found:
        raise UsageError(
            "This folder is not a model, but holds one." if len(found) == 1 else "This folder is not a model, but holds several.",
            found=f"{path} with {_named(found, path)}",
            expected=SOURCES,
            mend=f"name {found[0]}" + ("" if len(found) == 1 else ", or another of them"),
        )


def _subfolders(path: Path) -> Iterator[Path]:
    return (folder for folder in _content(path) if folder.is_dir() and not folder.name.startswith("."))


def _content(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing if this user may not read it."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _named(files: list[Path], folder: Path) -> str:
    return some_of([file.relative_to(folder) for file in files])
