"""The changes that a LoRA file holds, for weights that a bundle has already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from engines.arrays import Float32
from engines.errors import UsageError
from engines.networks.lora.lora_file import LoraFile, tensors_by_layer

Tensors: TypeAlias = dict[str, Float32]
"""A layer's tensors, by `LoraKey.kind`."""

PAIR: Set[str] = {"down", "up"}

OTHERS: Mapping[str, str] = {
    "magnitude": "DoRA", "dora_scale": "DoRA", "hada": "LoHa", "lokr": "LoKr", "mid": "a LoRA of convolutions with a core",
    "diff_b": "a change of a bias", "up_bias": "a change of a bias", "diff": "a whole change of a weight",
}  # fmt: skip
"""What a file is, by the first letters of the kinds of its tensors that are not read here."""

FUSE = "build a bundle with the LoRA in it, with model.lora in the plan: a build knows this kind"


@dataclass(frozen=True, eq=False)
class Factors:
    """A change of low rank of a layer's weight: `scale * up @ down`.

    Attributes:
        up: float32 [out, rank, 1...].
        down: float32 [rank, in, ...].
        scale: `alpha / rank`, or `alpha / sqrt(rank)` if the rank is stabilized.
    """

    up: Float32
    down: Float32
    scale: float

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Rows and columns of the change."""
        return len(self.up), int(np.prod(self.down.shape[1:]))

    def change(self, shape: tuple[int, ...]) -> Float32:
        """Return the change of a weight of this shape, float32."""
        product = self.up.reshape(len(self.up), -1) @ self.down.reshape(len(self.down), -1)
        return np.asarray(np.float32(self.scale) * product, dtype=np.float32).reshape(shape)


def factors_of(file: LoraFile) -> dict[str, dict[str, Factors]]:
    """Return the changes by part of the pipeline, then by layer name as the file spells it.

    Raises:
        UsageError: the file holds no LoRA or one of an unsupported kind, or a layer's factors are incomplete or do not match.
    """
    found: dict[str, dict[str, Factors]] = {}
    for (part, layer), tensors in tensors_by_layer(file, _unknown).items():
        found.setdefault(part, {})[layer] = _factors(file, part, layer, tensors)
    return found


def _unknown(found: str) -> UsageError:
    return UsageError(
        "This is not a LoRA, or not of a kind that is supported.",
        found=found,
        expected="factors with the names that diffusers, PEFT or kohya's trainers give them",
        mend="name the file that the training of a LoRA wrote, not that of a model",
    )


def _factors(file: LoraFile, part: str, layer: str, tensors: Tensors) -> Factors:
    name = f"{part} {layer}".strip()
    for kind in _other_kinds(tensors):
        raise _other(kind, f"{file.path}: {name}")
    if file.settings.needs_magnitude(part):
        raise _other("DoRA", f"use_dora in {file.settings.source}")
    if missing := PAIR - tensors.keys():
        raise UsageError(
            "The LoRA is incomplete.",
            found=f"{file.path}: {name} has {', '.join(tensors)}",
            expected=f"{' and '.join(sorted(missing))} too",
            mend="copy the file again, or save it again from its trainer",
        )
    up, down, alpha = tensors["up"], tensors["down"], tensors.get("alpha")
    fit = min(up.ndim, down.ndim) >= 2 and up.size and down.size and up[0].size == len(down) and (alpha is None or alpha.size == 1)
    if not fit:
        raise UsageError(
            "The LoRA has factors that do not fit each other.",
            found=f"{file.path}: {name}, " + ", ".join(f"{kind} {value.shape}" for kind, value in tensors.items()),
            expected="up [out, rank] and down [rank, in, ...], and one number alpha",
            mend="copy the file again",
        )
    if not (np.isfinite(up).all() and np.isfinite(down).all()):
        raise UsageError(
            "The LoRA has factors that are not finite.", found=f"{file.path}: {name}", expected="finite factors", mend="copy the file again"
        )
    return Factors(up, down, file.settings.scale(part, layer, len(down), None if alpha is None else float(alpha.reshape(()))))


def _other_kinds(tensors: Tensors) -> Iterator[str]:
    return (meaning for kind in tensors for start, meaning in OTHERS.items() if kind.startswith(start))


def _other(kind: str, found: str) -> UsageError:
    return UsageError(f"A built bundle cannot take this kind of LoRA: {kind}.", found=found, expected="factors up and down", mend=FUSE)
