"""What a build did to weights before it quantized them, done again to a changed weight; see `preparation.json` in a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.bundle.contract import first_problem
from engines.errors import BundleError, UsageError
from engines.networks.lora.hadamard import hadamard

FILE = "preparation.json"


class _Scaled(BaseModel):
    """Channels that were divided at their producer and multiplied at their consumers."""

    model_config = ConfigDict(frozen=True)

    producer: str
    first: int
    consumers: tuple[str, ...]
    factors: tuple[float, ...] | None = None


class _Folded(BaseModel):
    """Outputs of a layer that were rotated, with the weights of the layers that read them."""

    model_config = ConfigDict(frozen=True)

    producer: str
    first: NonNegativeInt
    channels: PositiveInt
    size: PositiveInt
    consumers: tuple[str, ...]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)

    split: dict[str, tuple[PositiveInt, ...]] = {}
    scaled: tuple[_Scaled, ...] = ()
    rotated: dict[str, PositiveInt] = {}
    folded: tuple[_Folded, ...] = ()


@dataclass(frozen=True)
class PreparedWeights:
    """The changes that a build made to the weights of a network: first splitting, then scaling, then rotating."""

    stored: _Stored

    @classmethod
    def read(cls, content: Mapping[str, object]) -> PreparedWeights:
        """Return the changes in the object of a `preparation.json`.

        Raises:
            ValidationError: it has other content.
        """
        return cls(_Stored.model_validate(content))

    @classmethod
    def of(cls, bundle: Bundle) -> PreparedWeights:
        """Read the changes of a bundle; none if its build made none.

        Raises:
            BundleError: the file is damaged.
        """
        name = f"{bundle.statistics_folder}/{FILE}"
        if name not in bundle.manifest.files:
            return cls(_Stored())
        try:
            return cls.read(bundle.json(name))
        except ValidationError as error:
            problem = f"{bundle.folder / name}: {first_problem(error)}"
            raise BundleError("The record of a bundle's preparation is damaged.", found=problem, mend="build the bundle again") from error

    def parts(self, layer: str, weight: Float32) -> Iterator[tuple[str, Float32]]:
        """Yield the names of the layers that a layer became, and their weights.

        Args:
            layer: name of a layer of the network as it was.
            weight: its weight [out, in, ...], or a change to the weight, because preparation is linear.

        Raises:
            UsageError: channels were scaled by factors that the bundle does not record.
        """
        sizes = self.stored.split.get(layer)
        if sizes is None:
            yield layer, self._rotated(layer, self._scaled(layer, weight))
            return
        for number, part in enumerate(np.split(weight, np.cumsum(sizes)[:-1], axis=1)):
            name = f"{layer}.parts.{number}"
            yield name, self._rotated(name, self._scaled(name, part))

    def _scaled(self, layer: str, weight: Float32) -> Float32:
        for one in self.stored.scaled:
            if layer != one.producer and layer not in one.consumers:
                continue
            if one.factors is None:
                raise UsageError(
                    "This bundle cannot take a LoRA.",
                    found=f"the channels of {layer} were scaled (quantization.channel_scaling) by factors that the bundle does not record",
                    expected="a bundle of a newer version of ptqd-export",
                    mend="build the bundle again, or use the precision fp32",
                )
            weight, factors = np.array(weight), np.array(one.factors, dtype=np.float32)
            if layer == one.producer:
                rows = slice(one.first, one.first + len(factors))
                weight[rows] /= factors.reshape(-1, *[1] * (weight.ndim - 1))
            else:
                weight *= factors.reshape(-1, *[1] * (weight.ndim - 2))
        return weight

    def _rotated(self, layer: str, weight: Float32) -> Float32:
        for one in self.stored.folded:
            if layer == one.producer:
                weight, rows = np.array(weight), slice(one.first, one.first + one.channels)
                weight[rows] = _in_blocks(weight[rows].T, one.size).T
            if layer in one.consumers:
                weight = _in_blocks(weight, one.size)
        size = self.stored.rotated.get(layer)
        return weight if size is None else _in_blocks(weight, size)


def _in_blocks(weight: Float32, size: int) -> Float32:
    """Rotate blocks of the inputs of a weight [out, in]."""
    blocks = weight.reshape(len(weight), -1, size)
    return np.asarray(blocks @ hadamard(size), dtype=np.float32).reshape(weight.shape)
