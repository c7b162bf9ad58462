"""A replacement for a pipeline's `unet` or `transformer` that runs the engines of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from numpy.typing import NDArray
from torch import Tensor

from engines.backends.base import Backend, Engine
from engines.backends.choice import Runtime, open_backend
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.manifest import InputRecord
from engines.chain.finite import check_output
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.networks.chain_choice import AUTO
from engines.networks.engine_denoiser import STATE, TIMESTEP
from engines.networks.grouped_engine import open_groups
from ptqd_export.diffusers.network_config import network_config
from ptqd_export.diffusers.timesteps import precisions_by_timestep, timestep_value, unknown_timestep


class PtqdDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped here
    """Looks like a diffusers network to a pipeline, but runs engines, selected by the pipeline's timestep.

    The output is the raw output of an engine. The correction must follow the guidance, which the pipeline applies; so `PtqdScheduler`
    corrects. Without that scheduler the chain is quantized and uncorrected.

    `to` sets `dtype` and `device`, which pipelines read; the engines run where their runtime runs them.

    Attributes:
        precision: the precision of every step, or `auto`.
        last_output: tensor that the last call returned. `PtqdScheduler` compares it with the tensor that the pipeline passes on.
    """

    config_name = "config.json"

    def __init__(self, bundle: Bundle, schedule: Schedule, precision: str | None, backend: Backend) -> None:
        super().__init__()
        self.register_to_config(**network_config(bundle.manifest.model))
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._model = bundle.manifest.model
        self._schedule = schedule
        self.precision = precision or AUTO
        self._precisions = precisions_by_timestep(schedule, precision)
        self._graphs = {taken: bundle.verified_graphs(taken) for taken in set(self._precisions.values())}
        self._backend = backend
        self._engines: dict[str, Engine] = {}
        self.last_output: Tensor | None = None

    @classmethod
    def from_bundle(
        cls, path: str | PathLike[str], *, schedule: str = DEFAULT, precision: str = AUTO, runtime: Runtime = "target"
    ) -> PtqdDenoiser:
        """Return a denoiser with the engines of a bundle. Graphs are verified now, and opened when they are first used.

        Args:
            path: folder of the bundle.
            schedule: name of the schedule that says which precision runs at a timestep.
            precision: one precision for every step, or `auto` for the schedule's choice.
            runtime: runtime of the engines; `target` is the one that the bundle was built for.

        Raises:
            UsageError: there is no such bundle, schedule or precision.
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged.
        """
        bundle = Bundle.open(Path(path))
        chosen = None if precision == AUTO else precision
        return cls(bundle, bundle.schedule(schedule), chosen, open_backend(bundle, runtime))

    @property
    def add_embedding(self) -> SimpleNamespace:
        """Stand-in for the layer of SDXL's network whose width pipelines read."""
        width = self.config.get("projection_class_embeddings_input_dim")
        if width is None:
            raise AttributeError("the network takes no added text and time conditions, and so has no add_embedding")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return the network's output for a batch at one timestep, with the dtype and device of `sample`.

        Args:
            sample: states [batch, channels, ...], scaled by the scheduler.
            timestep: one timestep for the whole batch.
            encoder_hidden_states: [batch, tokens, dim], if the network takes them.
            class_labels: [batch], if the network takes them.
            added_cond_kwargs: further conditions by name, if the network takes them.
            return_dict: return an object with the field `sample`, or a tuple.
            others: other arguments of diffusers' networks; any value that is not empty is refused.

        Raises:
            UsageError: the engines do not know an argument, a condition is missing, or the bundle does not have this shape or timestep.
        """
        _refuse(others)
        conditions = {"encoder_hidden_states": encoder_hidden_states, "class_labels": class_labels, **(added_cond_kwargs or {})}
        value = timestep_value(timestep)
        self._check_shape(sample)
        feeds = {STATE: _array(sample, "float32"), TIMESTEP: np.full(len(sample), value, dtype=np.float32)}
        feeds |= self._conditions({name: given for name, given in conditions.items() if given is not None})
        found = self._engine(value, len(sample)).run(feeds)
        check_output(found, self._precisions[value], value)
        out = torch.from_numpy(found).to(sample)
        self.last_output = out
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def save_pretrained(self, *_arguments: object, **_options: object) -> NoReturn:
        """Raise a UsageError: engines live in their bundle."""
        raise UsageError(
            "A pipeline with engines in it cannot be saved.",
            found="save_pretrained of a PtqdDenoiser",
            expected="the original pipeline, and the bundle beside it",
            mend="load the pipeline with from_pretrained and install the bundle again",
        )

    def _engine(self, timestep: float, rows: int) -> Engine:
        precision = self._precisions.get(timestep)
        if precision is None:
            raise unknown_timestep(timestep, self._schedule)
        if precision not in self._engines:
            self._engines[precision] = open_groups(self._backend, self._graphs[precision], rows)
        return self._engines[precision]

    def _check_shape(self, sample: Tensor) -> None:
        if tuple(sample.shape[1:]) != self._model.sample_shape:
            raise UsageError(
                "The engines take samples of another shape.",
                found=f"samples of shape {list(sample.shape[1:])}",
                expected=str(list(self._model.sample_shape)),
                mend="leave height and width of the pipeline at their defaults, or build a bundle of a model of that size",
            )

    def _conditions(self, given: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        record = self._model.conditioning
        inputs: Mapping[str, InputRecord] = {} if record is None else {spec.name: spec for spec in record.inputs}
        if given.keys() != inputs.keys():
            raise UsageError(
                "The pipeline's conditions are not those that the network takes.",
                found=", ".join(given) or "none",
                expected=", ".join(inputs) or "none: the model is unconditional",
                mend="use the pipeline that the model was trained for, or call the denoiser in a loop of your own",
            )
        arrays = {name: _array(given[name], spec.dtype) for name, spec in inputs.items()}
        if record is not None and record.file is None and "class_labels" in arrays:
            _check_labels(arrays["class_labels"], record.rows, record.null_class)
        return arrays


def _array(tensor: Tensor, dtype: str) -> NDArray[Any]:
    return tensor.detach().to("cpu", getattr(torch, dtype)).contiguous().numpy()


def _refuse(others: Mapping[str, Any]) -> None:
    """Refuse arguments that would change the network: engines have fixed weights and inputs."""
    for name, value in others.items():
        if value is not None and value != {}:
            raise UsageError(
                f"Engines cannot honour {name}.",
                found=f"{name} of type {type(value).__name__}",
                expected="None: attention arguments, ControlNet or adapter residuals and time conditions are not in the traced network",
                mend="use the original network for this",
            )


def _check_labels(labels: NDArray[Any], rows: int, null_class: int | None) -> None:
    known = {*range(rows), *([] if null_class is None else [null_class])}
    if not known.issuperset(labels.tolist()):
        null = "" if null_class is None else f", and {null_class} for no class"
        raise UsageError(
            "A class label is not one of the model's.",
            found=", ".join(str(label) for label in labels.tolist() if label not in known),
            expected=f"0 to {rows - 1}{null}",
            mend="correct the labels; DiTPipeline takes 1000 for no class, whatever the model: guide other models in a loop of your own",
        )
