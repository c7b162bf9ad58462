"""Residuals that a network takes from a control network: a ControlNet, or a T2I adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.bundle.bundle import Bundle
from engines.bundle.bundle_files import COPY_AGAIN
from engines.bundle.manifest import ControlNetworkRecord, InputRecord
from engines.chain.finite import NotFiniteError, is_finite
from engines.errors import BundleError, PtqdError, UsageError
from engines.networks.embeddings import TIMESTEP
from engines.untrusted.npz import read_arrays

STATE = "sample"

CONTROL_IMAGE = "control_image"
"""Input of a control network's graph, float32 [batch, C, H, W] in [0, 1]."""

Residuals: TypeAlias = Mapping[str, NDArray[Any]]
"""Residuals float32 [branches * batch, ...] by input name."""

OwnNetwork: TypeAlias = Callable[[Float32, Float32, Mapping[str, NDArray[Any]]], Residuals]
"""A control network of a user's own. It takes what the network is given at a step: states [branches * batch, C, ...], which the sampler has
scaled, their timesteps [branches * batch], and the conditions by name; under guidance the conditional half, then the unconditional half."""

GivenControl: TypeAlias = OwnNetwork | Float32
"""What gives the residuals of a run: a control network of a user's own, or images [K, C, H, W] in [0, 1] for that of the bundle."""


class ControlSource(Protocol):
    """Computes residuals. `rows` [batch] are the samples' rows of the conditioning table; see `OwnNetwork` for the rest."""

    def __call__(self, state: Float32, timestep: Float32, conditions: Mapping[str, NDArray[Any]], rows: Int64) -> Residuals: ...


@dataclass(frozen=True)
class Control:
    """The residuals of a network.

    Attributes:
        inputs: name and shape of each residual.
        source: computes them; None gives zeros.
    """

    inputs: tuple[InputRecord, ...]
    source: ControlSource | None = None
    _zeros: dict[int, Residuals] = field(default_factory=dict, compare=False)

    def feeds(self, state: Float32, timestep: Float32, conditions: Mapping[str, NDArray[Any]], rows: Int64) -> Residuals:
        """Return the residuals of a network call, in the order of `inputs`; see `ControlSource`.

        Raises:
            UsageError: the source returned other residuals than the network takes.
            NotFiniteError: they contain NaN or infinity.
        """
        if self.source is None:
            return self.zeros(len(state))
        found = self.source(state, timestep, conditions, rows)
        self._check(found, len(state))
        return {one.name: np.ascontiguousarray(found[one.name], dtype=np.float32) for one in self.inputs}

    def zeros(self, rows: int) -> Residuals:
        """Return residuals of zeros, made once for each number of rows."""
        if rows not in self._zeros:
            self._zeros[rows] = {one.name: np.zeros((rows, *one.shape), dtype=np.float32) for one in self.inputs}
        return self._zeros[rows]

    def silent(self) -> Control:
        """Return the same inputs with zeros."""
        return replace(self, source=None)

    def _check(self, found: Residuals, rows: int) -> None:
        shapes = {name: np.shape(value) for name, value in found.items()}
        wanted = {one.name: (rows, *one.shape) for one in self.inputs}
        if shapes != wanted:
            differing = [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]
            raise UsageError(
                "The residuals are not those that the network takes.",
                found=", ".join(f"{name} {list(shapes[name])}" for name in differing if name in shapes) or "none of them",
                expected=", ".join(f"{name} {list(wanted[name])}" for name in differing if name in wanted) or "no others",
                mend="use the control network that belongs to this model",
            )
        for name, value in found.items():
            if not is_finite(np.asarray(value)):
                raise NotFiniteError("The residuals are not finite.", found=f"NaN or infinity in {name}")


@dataclass(frozen=True)
class OwnControl:
    """A `ControlSource` around a user's own control network."""

    given: OwnNetwork

    def __call__(self, state: Float32, timestep: Float32, conditions: Mapping[str, NDArray[Any]], rows: Int64) -> Residuals:  # noqa: ARG002
        return self.given(state, timestep, conditions)


@dataclass(frozen=True)
class ControlNetwork:
    """A `ControlSource` that runs a control network.

    Attributes:
        engine: takes `control_image` and any of the network's own inputs, and returns all residuals of a row behind each other.
        inputs: residuals of the network, in the engine's order.
        images: float32 [K, C, H, W] in [0, 1]; row n of the conditioning table takes image n mod K.
        own_rows: rows to take in place of the conditioning table's, see `Conditioning.own_rows`; None takes the table's.
    """

    engine: Engine
    inputs: Sequence[InputRecord]
    images: Float32
    own_rows: Int64 | None = None
    _last: dict[bytes, Float32] = field(default_factory=dict, compare=False)

    def __call__(self, state: Float32, timestep: Float32, conditions: Mapping[str, NDArray[Any]], rows: Int64) -> Residuals:
        taken = [spec.name for spec in self.engine.inputs]
        if taken != [CONTROL_IMAGE]:
            image = np.concatenate([self.images[self._chosen(rows)]] * (len(state) // len(rows)))
            given = {STATE: state, TIMESTEP: timestep, CONTROL_IMAGE: image, **conditions}
            return self._split(self.engine.run({name: given[name] for name in taken}))
        return self._split(np.concatenate([self._of_images(rows)] * (len(state) // len(rows))))

    def _of_images(self, rows: Int64) -> Float32:
        """Return the output of a network that takes nothing but the images, so that it runs once for a batch of chains."""
        chosen = self._chosen(rows)
        key = chosen.tobytes()
        if key not in self._last:
            self._last.clear()
            self._last[key] = self.engine.run({CONTROL_IMAGE: self.images[chosen]})
        return self._last[key]

    def _chosen(self, rows: Int64) -> Int64:
        """Return the numbers [batch] of the images of rows."""
        own = rows if self.own_rows is None else self.own_rows[rows]
        return np.asarray(own % len(self.images))

    def _split(self, out: Float32) -> Residuals:
        sizes = [prod(one.shape) for one in self.inputs]
        if out.shape[1:] != (sum(sizes),):
            raise PtqdError(f"The output of {self.engine.label} has the wrong shape.", found=list(out.shape[1:]), expected=[sum(sizes)])
        parts = np.split(out, [*accumulate(sizes)][:-1], axis=1)
        return {one.name: part.reshape(-1, *one.shape) for one, part in zip(self.inputs, parts, strict=True)}


def images_of(pixels: NDArray[np.uint8]) -> Float32:
    """Return pixels uint8 [K, H, W, C] as a control network takes images, float32 [K, C, H, W] in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(pixels.astype(np.float32) / 255, -1, 1))


IMAGES = "images"


def stored_images(bundle: Bundle, record: ControlNetworkRecord) -> Float32:
    """Return the control images of a bundle's own rows, float32 [K, C, H, W] in [0, 1].

    Raises:
        BundleError: the file is damaged, or holds other images than the manifest says.
    """
    try:
        pixels = read_arrays(bundle.read(record.images))[IMAGES]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError("The control images cannot be read.", found=f"{record.images}: {error}", mend=COPY_AGAIN) from error
    channels, height, width = record.image_shape
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) == 0 or pixels.shape[1:] != (height, width, channels):
        raise BundleError(
            "The control images are not those that the manifest describes.",
            found=f"{record.images}: {pixels.dtype} {list(pixels.shape)}",
            expected=f"uint8 [K, {height}, {width}, {channels}]",
            mend=COPY_AGAIN,
        )
    return images_of(pixels)
