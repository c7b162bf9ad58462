"""A replacement for a pipeline's `unet` or `transformer` that runs the engines of a bundle."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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
from engines.chain.features import precision_and_cut
from engines.chain.finite import check_output
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.networks.chain_choice import AUTO
from engines.networks.control import Control
from engines.networks.engine_bank import load_conditioning
from engines.networks.engine_denoiser import STATE, TIMESTEP
from engines.networks.grouped_engine import open_groups
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_backend import with_loras
from engines.networks.lora.lora_use import GivenLoras, lora_uses
from ptqd_export.diffusers.filled_prompts import filled
from ptqd_export.diffusers.kept_features import KeptFeatures
from ptqd_export.diffusers.network_config import network_config, transformer_family
from ptqd_export.diffusers.pipeline_call import GRIDS, OF_THE_SIZE, POSITIONS, PipelineCall
from ptqd_export.diffusers.residuals import ARGUMENTS, WITH_CONTROL, check_residuals, given_residuals
from ptqd_export.diffusers.timesteps import TimestepNetwork, nearest_timestep, timestep_value, unknown_timestep, visits_by_timestep
from ptqd_export.models.conditions import EMBEDDINGS, GUIDANCE, IMAGE, LABELS, TIMESTEP_COND, guidance_of

BRANCHES = 2
"""Calls of a step at most: pipelines that guide take both branches in one call, or one after the other."""


class PtqdDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped here
    """Looks like a diffusers network to a pipeline, but runs engines, selected by the pipeline's timestep.

    The output is the raw output of an engine. The correction must follow the guidance, which the pipeline applies; so `PtqdScheduler`
    corrects. Without that scheduler the chain is quantized and uncorrected.

    `to` sets `dtype` and `device`, which pipelines read; the engines run where their runtime runs them.

    Attributes:
        precision: the precision of every step, or `auto`.
        outputs: what the last calls returned, in the scheduler's form. `PtqdScheduler` compares them with the tensor that the pipeline
            passes on, and then removes them.
        kept: features that calls keep for later ones; `PtqdScheduler` restarts them with every chain.
        guidance: guidance scale that the last call gave to the network as an input; None before, or if the network takes none.
        fitted_guidance: that of the plan; None if the network takes none.
        in_channels: channels of the states that pipelines make.
    """

    config_name = "config.json"

    def __init__(
        self, bundle: Bundle, schedule: Schedule, precision: str | None, backend: Backend, changed: ChangedWeights | None = None
    ) -> None:
        super().__init__()
        self.register_to_config(**network_config(bundle.manifest.model))
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._model = bundle.manifest.model
        self._schedule = schedule
        self.precision = precision or AUTO
        self._visits = visits_by_timestep(schedule, precision)
        self._graphs = {
            (visit.network, visit.reuses): bundle.verified_graphs(visit.network, reuses=visit.reuses) for visit in self._visits.values()
        }
        self._changed = changed
        self._backends = {taken: with_loras(backend, changed, precision_and_cut(taken[0])[0]) for taken in self._graphs}
        self._engines: dict[tuple[str, bool], Engine] = {}
        self.kept = KeptFeatures()
        self._call = PipelineCall.of(self._model)
        self._inputs: Mapping[str, InputRecord] = (
            {} if self._model.conditioning is None else {spec.name: spec for spec in self._model.conditioning.inputs}
        )
        self._control = None if self._model.control is None else Control(self._model.control.inputs)
        self.in_channels = int(self.config["in_channels"])
        self.outputs: deque[Tensor] = deque(maxlen=BRANCHES)
        self.guidance: float | None = None
        self.fitted_guidance = _fitted_guidance(bundle) if self._takes_guidance else None

    @classmethod
    def from_bundle(
        cls,
        path: str | PathLike[str],
        *,
        schedule: str = DEFAULT,
        precision: str = AUTO,
        runtime: Runtime = "target",
        loras: GivenLoras = None,
    ) -> PtqdDenoiser:
        """Return a denoiser with the engines of a bundle. Graphs are verified now, and opened when they are first used.

        Args:
            path: folder of the bundle.
            schedule: name of the schedule that says which precision runs at a timestep.
            precision: one precision for every step, or `auto` for the schedule's choice.
            runtime: runtime of the engines; `target` is the one that the bundle was built for.
            loras: LoRAs to put into the weights: files with their scales, or files at scale 1.

        Raises:
            UsageError: there is no such bundle, schedule or precision, or a LoRA does not fit.
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged.
        """
        bundle = Bundle.open(Path(path))
        chosen, uses = None if precision == AUTO else precision, lora_uses(loras)
        changed = ChangedWeights.of(bundle, uses) if uses else None
        return cls(bundle, bundle.schedule(schedule), chosen, open_backend(bundle, runtime), changed)

    @property
    def is_transformer(self) -> bool:
        """Whether the network is of the table of transformers, whose samples may have any size that the plan chose."""
        return transformer_family(self._model) is not None

    @property
    def add_embedding(self) -> SimpleNamespace:
        """Stand-in for the layer of SDXL's network whose width pipelines read."""
        width = self.config.get("projection_class_embeddings_input_dim")
        if width is None:
            raise AttributeError("the network takes no added text and time conditions, and so has no add_embedding")
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    @contextlib.contextmanager
    def cache_context(self, _name: str) -> Iterator[None]:
        """Do nothing for a branch: diffusers' transformers keep what they cache of each apart, and engines cache nothing."""
        yield

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor | Sequence[Tensor] | None = None,
        timestep: Tensor | float | None = None,
        encoder_hidden_states: Tensor | Sequence[Tensor] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        *,
        hidden_states: Tensor | None = None,
        **others: Any,
    ) -> UNet2DOutput | tuple[Tensor | list[Tensor]]:
        """Return the network's output for a batch at one timestep, with the form, dtype and device of the states.

        Args:
            sample: states [batch, channels, ...], scaled by the scheduler; in pipelines that pack them, tokens [batch, tokens, ...]; in
                those that list them, a list of [channels, 1, ...].
            timestep: one timestep for the whole batch.
            encoder_hidden_states: [batch, tokens, dim], or a list of [tokens, dim], if the network takes them.
            class_labels: [batch], if the network takes them.
            added_cond_kwargs: further conditions by name, if the network takes them.
            return_dict: return an object with the field `sample`, or a tuple.
            hidden_states: the states, as some transformers call them.
            others: other arguments of diffusers' networks: conditions that the network takes, and what follows from the size. Of the
                rest, any value that is not empty is refused.

        Raises:
            UsageError: the engines do not know an argument, a condition is missing, or the bundle does not have this shape or timestep.
        """
        states = hidden_states if sample is None else sample
        if states is None or timestep is None:
            raise TypeError("a network is called with `sample` or `hidden_states`, and with `timestep`")
        residuals, others = given_residuals(others, self._model.control)
        _refuse({name: value for name, value in others.items() if name not in self._inputs and name not in OF_THE_SIZE})
        given, image = self._without_image(self._call.states(states))
        self._call.check(given, others.get(POSITIONS), others.get(GRIDS))
        conditions = {EMBEDDINGS: encoder_hidden_states, LABELS: class_labels, IMAGE: image, **(added_cond_kwargs or {}), **others}
        conditions = filled(conditions, self._inputs)
        value = self._scheduled(timestep)
        feeds = {STATE: _array(self._call.latents(given), "float32"), TIMESTEP: np.full(len(given), value, dtype=np.float32)}
        feeds |= self._conditions({name: one for name, one in conditions.items() if torch.is_tensor(one) and name not in OF_THE_SIZE})
        feeds |= self._residuals(residuals, len(given))
        visit = self._visits[value]
        engine, is_cut = self._engine(visit, len(given)), precision_and_cut(visit.network)[1] is not None
        found = self.kept.run(engine, visit, feeds) if is_cut else engine.run(feeds)
        check_output(found, visit.network, value)
        out = self._call.given(torch.from_numpy(found)).to(given)
        self.outputs.append(out)
        returned = self._call.returned(out)
        return UNet2DOutput(sample=returned) if return_dict else (returned,)

    def save_pretrained(self, *_arguments: object, **_options: object) -> NoReturn:
        """Raise a UsageError: engines live in their bundle."""
        raise UsageError(
            "A pipeline with engines in it cannot be saved.",
            found="save_pretrained of a PtqdDenoiser",
            expected="the original pipeline, and the bundle beside it",
            mend="load the pipeline with from_pretrained and install the bundle again",
        )

    def _scheduled(self, timestep: Tensor | float) -> float:
        found = nearest_timestep(timestep, self._visits, self._call.timestep)
        if found is None:
            scale = self._call.timestep
            raise unknown_timestep((timestep_value(timestep) - scale.offset) / scale.scale, self._schedule)
        return found

    def _without_image(self, given: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the states, and the image that pipelines append to their channels for a network that takes one."""
        channels = self._model.sample_shape[0]
        if IMAGE not in self._inputs or given.shape[1] != channels + self._inputs[IMAGE].shape[0]:
            return given, None
        return given[:, :channels], given[:, channels:]

    def _residuals(self, given: Mapping[str, Tensor], rows: int) -> dict[str, NDArray[Any]]:
        """Return the residuals that the engines take; those that a pipeline does not give are zeros."""
        if self._control is None:
            return {}
        arrays = {name: _array(value, "float32") for name, value in given.items()}
        missing = {name: value for name, value in self._control.zeros(rows).items() if name not in arrays}
        return {**check_residuals(arrays, self._control.inputs, rows), **missing}

    def _engine(self, visit: TimestepNetwork, rows: int) -> Engine:
        taken = visit.network, visit.reuses
        if taken not in self._engines:
            self._engines[taken] = open_groups(self._backends[taken], self._graphs[taken], rows)
            if self._changed is not None:
                self._changed.release()
        return self._engines[taken]

    def _conditions(self, given: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        record, inputs = self._model.conditioning, self._inputs
        if given.keys() != inputs.keys():
            raise UsageError(
                "The pipeline's conditions are not those that the network takes.",
                found=", ".join(given) or "none",
                expected=", ".join(inputs) or "none: the model is unconditional",
                mend="use the pipeline that the model was trained for, or call the denoiser in a loop of your own",
            )
        arrays = {name: _array(given[name], spec.dtype) for name, spec in inputs.items()}
        for name, spec in inputs.items():
            _check_sizes(name, arrays[name], spec)
        if record is not None and record.file is None and LABELS in arrays:
            _check_labels(arrays[LABELS], record.rows, record.null_class)
        if self._takes_guidance:
            self.guidance = _one_guidance(arrays)
        return arrays

    @property
    def _takes_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input."""
        return not self._inputs.keys().isdisjoint((GUIDANCE, TIMESTEP_COND))


def _fitted_guidance(bundle: Bundle) -> float:
    """Return the guidance scale that a bundle's network was given as an input when it was calibrated."""
    conditioning = load_conditioning(bundle)
    assert conditioning is not None
    return _one_guidance(conditioning.tables)


def _one_guidance(arrays: Mapping[str, NDArray[Any]]) -> float:
    values = arrays[GUIDANCE] if GUIDANCE in arrays else np.array([guidance_of(row) for row in arrays[TIMESTEP_COND]])
    if len(set(values.tolist())) > 1:
        raise UsageError(
            "The samples of a batch have different guidance scales.",
            found=", ".join(f"{value:g}" for value in values.tolist()),
            expected="one for all: a correction holds for one guidance",
        )
    return float(values[0])


def _check_sizes(name: str, array: NDArray[Any], spec: InputRecord) -> None:
    if array.shape[1:] == spec.shape:
        return
    tokens = f": max_sequence_length={spec.shape[0]} where one encoder alone makes them" if name == EMBEDDINGS else ""
    raise UsageError(
        f"The pipeline's {name} have another size than the engines take.",
        found=f"{name} of shape {list(array.shape[1:])} for one sample",
        expected=str(list(spec.shape)),
        mend=f"call the pipeline with prompts of the length that the bundle was built for{tokens}",
    )


def _array(tensor: Tensor, dtype: str) -> NDArray[Any]:
    return tensor.detach().to("cpu", getattr(torch, dtype)).contiguous().numpy()


def _refuse(others: Mapping[str, Any]) -> None:
    """Refuse arguments that would change the network: engines have fixed weights and inputs."""
    for name, value in others.items():
        if value is not None and value != {}:
            raise UsageError(
                f"Engines cannot honour {name}.",
                found=f"{name} of type {type(value).__name__}",
                expected="None: attention arguments and time conditions are not in the traced network, and residuals only if asked for",
                mend=WITH_CONTROL if name in ARGUMENTS else "use the original network for this",
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
