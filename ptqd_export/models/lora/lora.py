"""Fuse a LoRA into the networks of a pipeline."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from engines.networks.lora.layer_aliases import plain
from engines.networks.lora.lora_file import read_lora_file
from engines.networks.lora.lora_keys import UNPLACED
from ptqd_export.models.lora.layer_change import LayerChange
from ptqd_export.models.lora.layer_names import named_layers
from ptqd_export.models.lora.lora_layers import lora_layers

OTHER_LORA = "use a LoRA that was trained on this kind of model"


@dataclass(frozen=True)
class Lora:
    """A LoRA.

    Attributes:
        path: path of the weights.
        files: every file that was read.
        scale: weight of the change; 1 is the trained change.
        layers: changes by part of the pipeline, then by layer name as the file spells it.
    """

    path: Path
    files: tuple[Path, ...]
    scale: float
    layers: Mapping[str, Mapping[str, LayerChange]]

    @property
    def is_placed(self) -> bool:
        """Whether the file says which part of the pipeline each layer belongs to."""
        return UNPLACED not in self.layers

    def placed(self, networks: Iterable[tuple[str, nn.Module]]) -> Lora:
        """Return the LoRA with every layer in a part: layers without one go to the network that has them all.

        Args:
            networks: the parts of the pipeline and their networks. Each network is asked for once, and not kept.

        Raises:
            UsageError: no network has all of the layers, or several have.
        """
        if self.is_placed:
            return self
        unplaced = self.layers[UNPLACED]
        missing = {part: _misfits(unplaced, network) for part, network in networks}
        parts = [part for part, names in missing.items() if not names]
        if len(parts) != 1:
            raise self._unplaceable(parts, missing)
        (part,) = parts
        known = self.layers.get(part, {})
        if twice := known.keys() & unplaced.keys():
            raise self._twice(part, min(twice))
        others = {name: layers for name, layers in self.layers.items() if name != UNPLACED}
        return replace(self, layers={**others, part: {**known, **unplaced}})

    def check_parts(self, known: Collection[str]) -> None:
        """Refuse a file that changes parts that the model does not have.

        Raises:
            UsageError: the file changes such a part.
        """
        if unknown := self.layers.keys() - set(known):
            raise UsageError(
                "The LoRA does not fit the model.",
                found=f"{self.path}: layers of {', '.join(sorted(unknown))}",
                expected=f"layers of {', '.join(known)}",
                mend=OTHER_LORA,
            )

    def fuse(self, part: str, network: nn.Module) -> None:
        """Change the weights of a part's network in place.

        Raises:
            UsageError: the file changes layers that the network lacks or whose weights have another shape, or changes a layer twice.
        """
        known, changed = named_layers(network), set[nn.Module]()
        for name, change in self.placed([(part, network)]).layers.get(part, {}).items():
            layer = known.get(plain(name))
            if layer is None or not change.fits(layer):
                raise UsageError(
                    "The LoRA does not fit the model.",
                    found=f"{self.path}: {part} {name}, {change.shapes}",
                    expected=f"a layer of {part}" if layer is None else f"a change of {_shapes(layer)}",
                    mend=OTHER_LORA,
                )
            if layer in changed:
                raise self._twice(part, name)
            changed.add(layer)
            change.add_to(layer, self.scale)
            if not all(torch.isfinite(value).all() for value in layer.parameters(recurse=False)):
                raise UsageError(
                    "The LoRA makes weights that are not finite.",
                    found=f"{self.path}: {part} {name}",
                    expected="finite factors, and a finite scale",
                    mend="copy the file again, and check model.lora.scale",
                )

    def _unplaceable(self, parts: Collection[str], missing: Mapping[str, Collection[str]]) -> UsageError:
        """Return the error that no network, or several, have all of the layers that belong to no part."""
        total = len(self.layers[UNPLACED])
        if parts:
            return UsageError(
                "The LoRA fits several networks of the model.",
                found=f"{self.path}: {total} layers, all of them in {' and in '.join(parts)}",
                expected="keys that name the network",
                mend=f'save the LoRA with a network\'s name before each key, such as "{next(iter(parts))}."',
            )
        counts = (f"{total - len(names)} in {part} (not {min(names)})" for part, names in missing.items())
        return UsageError(
            "The LoRA does not fit the model.",
            found=f"{self.path}: of {total} layers whose keys name no network, {', '.join(counts)}",
            expected="one network that has all of the layers, with the same shapes",
            mend=OTHER_LORA,
        )

    def _twice(self, part: str, name: str) -> UsageError:
        return UsageError(
            "The LoRA changes a layer twice.",
            found=f"{self.path}: {part} {name} under two names",
            expected="one change of each layer",
            mend="take one of the two out of the file",
        )


def load_lora(path: Path, scale: float) -> Lora:
    """Read a LoRA from a safetensors file, or from a folder that PEFT or diffusers saved.

    Args:
        path: path of the file or folder.
        scale: see `Lora`.

    Raises:
        UsageError: there is no such file, or it contains changes of a kind that is not supported, or incomplete ones.
        PtqdError: the file cannot be read.
    """
    file = read_lora_file(path)
    return Lora(file.path, file.files, scale, lora_layers(file))


def _misfits(changes: Mapping[str, LayerChange], network: nn.Module) -> list[str]:
    """Return the names of the layers that the network does not have, or has with other shapes."""
    known = named_layers(network)
    return [name for name, change in changes.items() if (layer := known.get(plain(name))) is None or not change.fits(layer)]


def _shapes(layer: nn.Module) -> str:
    shapes = {name: value for name in ("weight", "bias") if isinstance(value := getattr(layer, name, None), Tensor)}
    return " and ".join(f"a {name} {tuple(value.shape)}" for name, value in shapes.items())
