"""Models that are named by their id on the Hugging Face hub: taken from the local cache, else downloaded."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import MissingBackendError, PtqdError, UsageError, first_line
from engines.host.room import naming_full_disks
from ptqd_export.models.places.hub_files import lacking, wanted_files
from ptqd_export.models.places.snapshots import MAIN, find_snapshot

_NAME = r"[A-Za-z0-9][\w.-]*"
_WRITTEN = re.compile(
    rf"(?:https?:/+(?:huggingface\.co|hf\.co)/)?(?P<id>{_NAME}/{_NAME})(?:(?:@|/tree/)(?P<revision>{_NAME}(?:/{_NAME})*))?/?"
)
_LONGEST = 96


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        id: `org/name`.
        revision: branch, tag or commit; None is the main branch.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, written: str) -> HubModel | None:
        """Return the model that `org/name`, `org/name@revision` or the address of its page names; None for anything else."""
        found = _WRITTEN.fullmatch(written)
        if found is None or len(found["id"]) > _LONGEST or ".." in written or "--" in found["id"]:
            return None
        return cls(found["id"], found["revision"])

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def command(self) -> str:
        """The command that downloads the model."""
        return f"hf download {self.id}" + ("" if self.revision is None else f" --revision {self.revision}")


def hub_snapshot(model: HubModel, path: Path) -> Path:
    """Return the folder of a model in the cache, after downloading what is missing there.

    Args:
        model: the model.
        path: the local path that it would have, for the message.

    Raises:
        UsageError: the model is not in the cache, or only in part, and cannot be downloaded.
        MissingBackendError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingBackendError(
            "Models of the hub need huggingface_hub.", found=str(error), mend="pip install 'ptqd-export[export]'"
        ) from error
    cache = Path(constants.HF_HUB_CACHE)
    cached = find_snapshot(cache / f"models--{model.id.replace('/', '--')}", model.revision)
    missing = f"{model} is not in the cache {cache}" if cached is None else lacking(cached)
    if cached is not None and missing is None:
        return cached
    try:
        return _download(model, cache)
    except PtqdError:
        raise
    except Exception as error:  # of huggingface_hub, of its transport, or of the system
        raise _not_found(model, f"no folder {path}; {missing}", error) from error


def _download(model: HubModel, cache: Path) -> Path:
    """Download the files that a build reads; files that are in the cache are kept."""
    from huggingface_hub import HfApi, snapshot_download

    names = [one.rfilename for one in HfApi().model_info(model.id, revision=model.revision).siblings or ()]
    with naming_full_disks(cache), _bars_on_terminals():
        return Path(snapshot_download(model.id, revision=model.revision or MAIN, allow_patterns=wanted_files(names)))


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Turn off the bars of huggingface_hub where nobody sees them move."""
    from huggingface_hub import utils

    change = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if change:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if change:
            utils.enable_progress_bars()


def _not_found(model: HubModel, missing: str, error: Exception) -> UsageError:
    from huggingface_hub import errors

    expected = f"a local folder, a model in the cache, or a hub from which {model} can be downloaded"
    login = "for a private model, log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        mend = f"accept the model's terms at https://huggingface.co/{model.id}, then log in with `hf auth login`"
        return UsageError("The hub gives this model only to those who accepted its terms.", found=missing, expected=expected, mend=mend)
    if isinstance(error, errors.RepositoryNotFoundError):
        mend = f"correct the id in the plan, or of --model; {login}"
        return UsageError("There is no such model, neither here nor on the hub.", found=missing, expected=expected, mend=mend)
    if isinstance(error, errors.RevisionNotFoundError):
        mend = "correct the revision after the @"
        return UsageError("The model on the hub has no such revision.", found=missing, expected=expected, mend=mend)
    return UsageError(
        "The model is not complete on this machine, and cannot be downloaded.",
        found=f"{missing}; {type(error).__name__}: {first_line(error)}",
        expected=expected,
        mend=f"run `{model.command}` where there is a network, and copy the cache; or name the model's folder",
    )
