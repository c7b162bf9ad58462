"""The LoRAs of a chain, matched with the layers of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from pydantic import NonNegativeInt

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Strict
from engines.errors import UsageError
from engines.networks.lora.factors import Factors, factors_of
from engines.networks.lora.layer_aliases import aliases, plain
from engines.networks.lora.lora_bytes import LoraBytes
from engines.networks.lora.lora_file import LoraFile, read_lora_file
from engines.networks.lora.lora_keys import DENOISER, UNPLACED
from engines.networks.lora.lora_use import LoraUse
from engines.untrusted.stored_tensors import StoredTensors

FULL_PRECISION = "fp32"

WEIGHT, TRANSPOSED = ".weight", ".weight.T"
"""Ends of the names of weights; the second is that of a linear layer that is stored as [in, out]."""

Contents: TypeAlias = tuple[tuple[str, str, float], ...]
"""What tells LoRAs from others, wherever they lie: for each its file's name, the SHA-256 of what was read, and its scale."""

OTHER_LORA = "use a LoRA that was trained on this kind of model"


class LoraRecord(Strict):
    """A LoRA in the record of samples.

    Attributes:
        file: name of the file.
        sha256: SHA-256 of the file; of weights and settings, one after the other, where PEFT saved both.
        scale: weight of the change.
        layers: number of layers of the network that it changes.
        ignored: number of layers that it would change besides, by part of the pipeline: a bundle's text encoders stay as they are.
    """

    file: str
    sha256: str
    scale: float
    layers: NonNegativeInt
    ignored: dict[str, NonNegativeInt]


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """The weights of a network's layers in full precision, in the order of a module: [out, in, ...].

    Attributes:
        tensors: constants of the bundle's graph in full precision.
    """

    tensors: StoredTensors

    @classmethod
    def of(cls, bundle: Bundle) -> FloatWeights:
        """Open the weights of a bundle.

        Raises:
            BundleError: the graph is damaged.
        """
        return cls(StoredTensors(bundle.verified_graph(FULL_PRECISION)))

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the weights by layer."""
        found = dict[str, tuple[int, ...]]()
        for name, one in self.tensors.items():
            if name.endswith(TRANSPOSED) and len(one.shape) == 2:
                found[name.removesuffix(TRANSPOSED)] = one.shape[::-1]
            elif name.endswith(WEIGHT) and len(one.shape) >= 2:
                found[name.removesuffix(WEIGHT)] = one.shape
        return found

    def __getitem__(self, layer: str) -> Float32:
        """Return the weight of a layer."""
        transposed = self.tensors.get(f"{layer}{TRANSPOSED}")
        found = self.tensors[f"{layer}{WEIGHT}"].values() if transposed is None else transposed.values().T
        return np.asarray(found, dtype=np.float32)


@dataclass(frozen=True)
class LoraChanges:
    """What all LoRAs of a chain change together.

    Attributes:
        uses: the LoRAs.
        layers: names of the changed layers, with the factors and the scale of every LoRA that changes them.
        records: what was used, for records of samples.
    """

    uses: tuple[LoraUse, ...]
    layers: Mapping[str, Sequence[tuple[Factors, float]]] = field(compare=False)
    records: tuple[LoraRecord, ...] = field(compare=False)

    @classmethod
    def of(cls, weights: FloatWeights, uses: Sequence[LoraUse]) -> LoraChanges:
        """Read the files, and find the layers that they change.

        Raises:
            UsageError: a file is missing, is of another kind, or does not fit the network.
            PtqdError: a file cannot be read.
        """
        known = aliases(weights.shapes)
        layers: dict[str, list[tuple[Factors, float]]] = {}
        records = []
        for use in uses:
            file = read_lora_file(use.path)
            parts = factors_of(file)
            found = dict(_of_denoiser(file, parts, known, weights.shapes))
            for layer, factors in found.items():
                layers.setdefault(layer, []).append((factors, use.scale))
            ignored = {part: len(others) for part, others in parts.items() if part not in (DENOISER, UNPLACED)}
            records.append(LoraRecord(file=file.path.name, sha256=file.sha256, scale=use.scale, layers=len(found), ignored=ignored))
        return cls(tuple(uses), layers, tuple(records))

    def change(self, layer: str, shape: tuple[int, ...]) -> Float32:
        """Return what is added to the weight of a layer.

        Raises:
            UsageError: it is not finite.
        """
        total = np.zeros(shape, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for factors, scale in self.layers[layer]:
                total += np.float32(scale) * factors.change(shape)
        if not np.isfinite(total).all():
            raise UsageError(
                "The LoRA makes weights that are not finite.",
                found=f"{layer} with {', '.join(f'{use.path}:{use.scale:g}' for use in self.uses)}",
                expected="smaller scales, and factors that were not damaged",
            )
        return total

    @property
    def contents(self) -> Contents:
        """What was read, to compare with `contents_of`."""
        return tuple((record.file, record.sha256, record.scale) for record in self.records)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What is not used, in words for people; empty if everything is."""
        return tuple(
            f"{record.file}: {count} {'layer' if count == 1 else 'layers'} of {part} ignored; a bundle's text encoders take no LoRA"
            for record in self.records
            for part, count in record.ignored.items()
        )


def contents_of(uses: Sequence[LoraUse]) -> Contents:
    """Return what the files of LoRAs contain now.

    Raises:
        UsageError: a file is missing.
        PtqdError: a file cannot be read.
    """
    files = ((LoraBytes.read(use.path), use.scale) for use in uses)
    return tuple((file.path.name, file.sha256, scale) for file, scale in files)


def _of_denoiser(
    file: LoraFile, parts: Mapping[str, Mapping[str, Factors]], known: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Factors]]:
    """Yield the changed layers of the network by the names of the bundle."""
    named = [(name, factors) for part in (DENOISER, UNPLACED) for name, factors in parts.get(part, {}).items()]
    if not named:
        raise UsageError(
            "The LoRA changes no layer of the network that a bundle samples with.",
            found=f"{file.path}: layers of {', '.join(sorted(parts))}",
            expected="layers of a U-Net or a transformer; text encoders of a bundle stay as they are",
            mend="build a bundle with the LoRA in it, with model.lora in the plan",
        )
    seen = set[str]()
    for name, factors in named:
        layer = known.get(plain(name))
        shape = None if layer is None else shapes[layer]
        if layer is None or shape is None or factors.rows_and_columns != (shape[0], int(np.prod(shape[1:]))):
            raise UsageError(
                "The LoRA does not fit the model.",
                found=f"{file.path}: {name}, up {factors.up.shape} and down {factors.down.shape}",
                expected="a layer of the network" if shape is None else f"a change of a weight {shape}",
                mend=OTHER_LORA,
            )
        if layer in seen:
            raise UsageError(
                "The LoRA changes a layer twice.",
                found=f"{file.path}: {name} under two names",
                expected="one change of each layer",
                mend="take one of the two out of the file",
            )
        seen.add(layer)
        yield layer, factors
