"""From what a user wrote as the model to the folder or file that is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engines.errors import UsageError
from ptqd_export.models.diffusers_folder import INDEX
from ptqd_export.models.places.hub_model import HubModel, hub_snapshot
from ptqd_export.models.places.other_files import CHECKPOINTS, refuse_file
from ptqd_export.models.places.other_folders import refuse_folder
from ptqd_export.models.places.snapshots import cached_snapshot, is_cached_model
from ptqd_export.models.tensors.downloaded_file import check_downloaded, hub_id


@dataclass(frozen=True)
class ModelPlace:
    """Where a model lies.

    Attributes:
        path: its folder or file.
        hub: the model of the hub that the user named, or None.
    """

    path: Path
    hub: HubModel | None = None

    @property
    def name(self) -> str:
        """A short name: of the model on the hub, else of the folder or file."""
        found = hub_id(self.path)
        if found is not None:
            return found.rpartition("/")[2]
        return self.path.absolute().name if self.path.is_dir() else self.path.stem

    def written(self, folder: Path) -> str:
        """Return what a plan in `folder` says: a relative path, or the id on the hub with the commit that was found."""
        if self.hub is not None:
            return str(HubModel(self.hub.id, self.path.name))
        return Path(os.path.relpath(self.path, folder)).as_posix()


def find_place(written: str, folder: Path) -> ModelPlace:
    """Find a model.

    Args:
        written: a path, or the id of a model on the Hugging Face hub, with or without `@revision`. A local path takes precedence.
        folder: folder to which a path is relative.

    Raises:
        UsageError: there is no such model, its download is incomplete, or it is not a kind of folder or file that can be read.
    """
    path = folder / written
    if path.is_file():
        return ModelPlace(_of_file(path))
    if path.is_dir():
        return ModelPlace(_of_folder(path))
    hub = HubModel.parse(written)
    if hub is None or (folder / hub.id.partition("/")[0]).is_dir():
        raise _missing(path)
    return ModelPlace(hub_snapshot(hub, path), hub)


def find_part(written: str, folder: Path, key: str) -> Path:
    """Find the folder of a single part of a pipeline, such as a decoder.

    Args:
        written: a path, or the id of a repository on the Hugging Face hub. A local path takes precedence.
        folder: folder to which a path is relative.
        key: key of the plan, for the message.

    Raises:
        UsageError: there is no such folder, or its download is incomplete.
    """
    path, hub = folder / written, HubModel.parse(written)
    if path.is_dir():
        return path
    if hub is None or (folder / hub.id.partition("/")[0]).is_dir():
        raise UsageError(
            f"The folder that {key} names is missing.",
            found=f"no folder {path}",
            expected="a folder written by `save_pretrained` of a diffusers model, or its id on the Hugging Face hub",
            mend=f"correct {key}, which is relative to the plan",
        )
    return hub_snapshot(hub, path)


def _of_file(path: Path) -> Path:
    if path.name == INDEX:
        return _of_folder(path.parent)
    if path.suffix not in CHECKPOINTS:
        refuse_file(path)
    check_downloaded(path)
    return path


def _of_folder(path: Path) -> Path:
    if is_cached_model(path):
        path = cached_snapshot(path)
    refuse_folder(path)
    return path


def _missing(path: Path) -> UsageError:
    if path.suffix in CHECKPOINTS:
        return UsageError(
            "The checkpoint is missing.", found=f"no file {path}", mend="correct model.path, relative to the plan, or --model"
        )
    return UsageError(
        "The model folder is missing.",
        found=f"no folder {path}",
        expected="a folder written by `save_pretrained` of a diffusers pipeline or model, "
        f"a {' or '.join(CHECKPOINTS)} file beside its YAML, or the id of a model on the Hugging Face hub",
        mend="correct model.path, which is relative to the plan, or --model",
    )
