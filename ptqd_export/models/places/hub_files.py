"""Which files of a model on the hub a build reads: repositories also hold other formats, other precisions and other parts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from engines.errors import PtqdError
from ptqd_export.models.diffusers_folder import DENOISERS, INDEX, read_config
from ptqd_export.models.diffusers_models.diffusers_decoder import FIRST_STAGE_PARTS
from ptqd_export.models.tensors.downloaded_file import check_downloaded
from ptqd_export.models.tensors.weight_files import DIFFUSERS, TRANSFORMERS, WeightNames, choose_weights, find_weights
from ptqd_export.models.text.text_encoders import ENCODERS

WEIGHTS_OF: dict[str, WeightNames] = {
    **dict.fromkeys((*DENOISERS, *FIRST_STAGE_PARTS), DIFFUSERS),
    **dict.fromkeys(ENCODERS, TRANSFORMERS),
}
"""The parts with weights, and how their files are called."""

CONFIGURED: dict[str, str] = {**dict.fromkeys(WEIGHTS_OF, "config.json"), "scheduler": "scheduler_config.json"}
"""The parts with a configuration, and its name."""

READ = frozenset({*CONFIGURED, *ENCODERS.values()})
TEXTS = (".json", ".txt", "spiece.model")
"""How the names of configurations and of the files of tokenizers end."""


def wanted_files(names: Collection[str]) -> list[str]:
    """Return the files of a repository that a build reads: configurations, tokenizers, and one variant of the weights of each part.

    Args:
        names: names of all files, with slashes.
    """
    wanted = [name for name in names if name.endswith(TEXTS) and ".index." not in name and _part(name) in ("", *READ)]
    for part, library in (("", DIFFUSERS), *WEIGHTS_OF.items()):
        inside = [name.rpartition("/")[2] for name in names if _part(name) == part]
        try:
            chosen = choose_weights(inside, library, part)
        except PtqdError:  # the reader says so in its own words, if it needs this part
            continue
        wanted += [f"{part}/{name}" if part else name for name in chosen.names]
    return sorted(set(wanted))


def _part(name: str) -> str:
    return name.rpartition("/")[0]


def lacking(snapshot: Path) -> str | None:
    """Return what a cached pipeline lacks of the parts that are read, or None."""
    index = snapshot / INDEX
    if not index.is_file():
        return None if (snapshot / "config.json").is_file() else f"no {index}"
    try:
        for part in (name for name, entry in read_config(index).items() if name in READ and entry != [None, None]):
            if part in CONFIGURED:
                check_downloaded(snapshot / part / CONFIGURED[part])
            if part in WEIGHTS_OF:
                find_weights(snapshot / part, WEIGHTS_OF[part])
            if not (snapshot / part).is_dir():
                return f"no {snapshot / part}"
    except PtqdError as error:
        return " ".join(str(error).split())
    return None
