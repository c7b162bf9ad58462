"""The names that trainers give the layers of a network.

Names are compared with underscores for dots. The names of a bundle's layers are those of its weights, which a build takes from the
network's modules. From these follow the names that a U-Net's layers have in SDXL's original code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from types import SimpleNamespace

from engines.networks.lora.original_blocks import ENDS, RESNET, SHORTCUT, Place, original_blocks

LABEL_EMBEDDING = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
"""Original names of the layers for SDXL's added conditions."""


def plain(name: str) -> str:
    """Return a name with underscores for dots."""
    return name.replace(".", "_")


def aliases(layers: Collection[str]) -> dict[str, str]:
    """Return the names of layers by every name that they have in LoRA files, with underscores for dots."""
    originals = {plain(name): now for name, now in original_names(layers) if now in layers}
    return originals | {plain(name): name for name in layers}


def original_names(names: Collection[str]) -> Iterator[Place]:
    """Yield the original names of a U-Net's modules, and diffusers'; nothing for another network.

    Args:
        names: names of modules; those that only contain others may be missing.
    """
    if not any(name.startswith("down_blocks.0.resnets.") for name in names):
        return
    places = original_blocks(SimpleNamespace(
        down_blocks=_blocks(names, "down_blocks"), up_blocks=_blocks(names, "up_blocks"), mid_block=_block(names, "mid_block"),
    ))  # fmt: skip
    yield from (*ENDS.items(), *LABEL_EMBEDDING.items())
    for source, target in places.resnets:
        yield from ((f"{source}.{old}", f"{target}.{now}") for old, now in (*RESNET.items(), *SHORTCUT.items()))
    for source, target in places.attentions:
        yield from ((f"{source}{name.removeprefix(target)}", name) for name in names if name.startswith(f"{target}."))
    yield from ((f"{source}.op", f"{target}.conv") for source, target in places.downsamplers)
    yield from ((f"{source}.conv", f"{target}.conv") for source, target in places.upsamplers)


def _blocks(names: Collection[str], kind: str) -> list[SimpleNamespace]:
    return [_block(names, f"{kind}.{number}") for number in range(_count(names, kind))]


def _block(names: Collection[str], place: str) -> SimpleNamespace:
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    return SimpleNamespace(**{kind: _children(names, f"{place}.{kind}") for kind in kinds})


def _children(names: Collection[str], place: str) -> Sequence[int]:
    return range(_count(names, place))


def _count(names: Collection[str], place: str) -> int:
    """Return how many numbered modules lie in a place."""
    within = re.compile(rf"{re.escape(place)}\.(\d+)\.")
    return 1 + max((int(found[1]) for name in names if (found := within.match(name))), default=-1)
