"""How the layers of a precision are stored, from the bundle's statistics."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from engines.bundle.bundle import Bundle
from engines.bundle.contract import first_problem
from engines.errors import BundleError


class LayerForm(BaseModel):
    """The part of a layer's record that says how its weight is stored; `form` is `integer`, or a kind of floats with scales."""

    model_config = ConfigDict(frozen=True)

    name: str
    op: str
    weight_bits: PositiveInt | None
    form: str = "integer"


class _Layers(BaseModel):
    layers: tuple[LayerForm, ...]


@dataclass(frozen=True)
class LayerForms:
    """The layers of one precision by name; None for a precision without statistics, such as `fp32`."""

    layers: dict[str, LayerForm] | None

    @classmethod
    def of(cls, bundle: Bundle, precision: str) -> LayerForms:
        """Read the layers of a precision.

        Raises:
            BundleError: the statistics are damaged.
        """
        name = f"statistics/{bundle.manifest.placement}/{precision}.json"
        if name not in bundle.manifest.files:
            return cls(None)
        try:
            found = _Layers.model_validate(bundle.json(name)).layers
        except ValidationError as error:
            problem = f"{bundle.folder / name}: {first_problem(error)}"
            raise BundleError("The statistics are damaged.", found=problem, mend="build the bundle again") from error
        return cls({layer.name: layer for layer in found})

    def __getitem__(self, layer: str) -> LayerForm | None:
        return None if self.layers is None else self.layers.get(layer)
