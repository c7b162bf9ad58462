"""Links from the tensors of a checkpoint to the parameters of a network. Every tensor and every parameter must be accounted for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from engines.errors import PtqdError, some_of

KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Link:
    """A module of the checkpoint, and the modules of the network that its weight and bias fill.

    Attributes:
        source: name in the checkpoint.
        targets: names in the network. Several targets split the output channels of the source into equal parts.
        heads: number of heads, if the source holds query, key and value of each head in turn; else 1.
    """

    source: str
    targets: tuple[str, ...]
    heads: int = 1

    def parts(self, tensor: Tensor) -> Iterable[Tensor]:
        """Split the source's tensor [targets * channels, ...] into one tensor [channels, ...] for each target.

        Heads are outermost in the source: [heads, targets, channels of a head, ...].
        """
        if len(self.targets) == 1:
            return (tensor,)
        by_head = tensor.unflatten(0, (self.heads, len(self.targets), -1))
        return (by_head[:, part].flatten(0, 1) for part in range(len(self.targets)))


def link(source: str, *targets: str, heads: int = 1) -> Link:
    return Link(source, targets, heads)


def below(source: str, target: str, table: Mapping[str, str]) -> list[Link]:
    """Return the links of a table whose names lie below `source` and `target`."""
    return [link(f"{source}.{old}", f"{target}.{new}") for old, new in table.items()]


def tensor_names(network: nn.Module, links: Iterable[Link]) -> list[str]:
    """Return the names of the tensors that fill the network, as the links name them."""
    wanted = network.state_dict().keys()
    return [f"{one.source}.{kind}" for one in links for kind in KINDS if f"{one.targets[0]}.{kind}" in wanted]


def fill(network: nn.Module, links: Collection[Link], tensors: Mapping[str, Tensor], key: Callable[[str], str] = str) -> set[str]:
    """Fill every parameter of a network with the tensor that is linked to it.

    Args:
        network: filled in place; may be on the meta device. Float32 tensors are used as they are, without a copy.
        links: links for all modules of the network that have parameters.
        tensors: tensors of the checkpoint, by key.
        key: turns a tensor name of a link into the checkpoint's key.

    Returns:
        the keys that were used.

    Raises:
        PtqdError: a tensor is missing or has the wrong shape; the message names the tensor.
    """
    used = {key(name) for name in tensor_names(network, links)}
    refuse_missing(sorted(used), tensors)
    wanted = network.state_dict()
    named = ((one, kind) for one in links for kind in KINDS if key(f"{one.source}.{kind}") in used)
    pairs = (_pairs(one, kind, key(f"{one.source}.{kind}"), tensors, wanted) for one, kind in named)
    network.load_state_dict(dict(chain.from_iterable(pairs)), assign=True)
    return used


def refuse_missing(names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise PtqdError(
            "The checkpoint lacks tensors of the model described by its configuration.",
            found=f"no {some_of(missing)}",
            mend="use the configuration that the checkpoint was trained with",
        )


def refuse_unused(unused: Collection[str]) -> None:
    if unused:
        raise PtqdError(
            "The checkpoint contains tensors that the model described by its configuration does not have.",
            found=some_of(sorted(unused)),
            mend="use the configuration that the checkpoint was trained with",
        )


def _pairs(one: Link, kind: str, key: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    shapes = [wanted[f"{target}.{kind}"].shape for target in one.targets]
    expected = (len(shapes) * shapes[0][0], *_without_window(shapes[0]))
    tensor = tensors[key]
    if (*tensor.shape[:1], *_without_window(tensor.shape)) != expected:
        raise PtqdError(
            "The shape of a tensor in the checkpoint differs from its configuration.",
            found=f"{key} {tuple(tensor.shape)}",
            expected=f"{expected}",
            mend="use the configuration that the checkpoint was trained with",
        )
    for target, shape, part in zip(one.targets, shapes, one.parts(tensor), strict=True):
        yield f"{target}.{kind}", part.reshape(shape).to(torch.float32)


def _without_window(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape after the output channels, without a window of one value: a 1 x 1 convolution is a linear layer."""
    return shape[1:] if any(size > 1 for size in shape[2:]) else shape[1:2]
