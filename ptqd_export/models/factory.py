"""Load any network through a function that the user wrote: `"model": {"factory": "package.module:function"}`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError
from engines.host.files import files_below
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.base import Adapter, Declaration, DecoderModule, LoadedModel
from ptqd_export.models.conditions import ConditionInput, class_input, conditioning_of, image_input
from ptqd_export.models.module_checks import check_finite
from ptqd_export.source_tree import SourceTree

__all__ = ["ConditionInput", "FactoryModel", "class_input", "declare_factory", "image_input", "load_factory"]


@dataclass(frozen=True)
class FactoryModel:
    """What a factory returns.

    Attributes:
        network: called as `network(sample, timestep, *conditions)` with a state [B, *sample_shape], its timestep [B], and the inputs below
            in their order, all float32 except labels. Returns its output, shaped like the state.
        sample_shape: shape of one state, [channels, ...].
        noise_schedule: noise schedule, or the equivalent keys of a diffusers `scheduler_config.json`.
        inputs: conditioning inputs of the network.
        decoder: called as `decoder(states)`; returns images [B, 1 or 3, H, W] in [-1, 1]. None if the states are images.
        files: files and folders that the network depends on, such as its checkpoint. They and the factory's source decide what a build may
            reuse.
    """

    network: nn.Module
    sample_shape: tuple[int, ...]
    noise_schedule: NoiseSchedule | Mapping[str, Any]
    inputs: tuple[ConditionInput, ...] = ()
    decoder: nn.Module | None = None
    files: tuple[Path, ...] = ()


class FactoryAdapter(Adapter):
    """Calls the network unchanged: a factory's network has the common interface."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        out: Tensor = self.network(sample, timestep, *conditions)
        return out


class FactoryDecoder(DecoderModule):
    """Calls the user's decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder.eval().requires_grad_(False).float()

    def forward(self, states: Tensor) -> Tensor:
        images: Tensor = self.decoder(states)
        return images


def load_factory(name: str, folder: Path, null_class: int | None = None, conditions: Path | None = None) -> LoadedModel:
    """Call a factory and check its modules against what it declares.

    Args:
        name: `package.module:function`, importable from `folder` or the Python path.
        folder: folder of the plan.
        null_class: see `ptqd_export.models.conditions.conditioning_of`.
        conditions: its argument `table`.

    Raises:
        UsageError: there is no such function, or it does not return what it should.
        PtqdError: the function raised an exception.
    """
    made, sources = _made(name, folder)
    conditioning, null = conditioning_of(made.inputs, null_class, conditions)
    model = LoadedModel(
        family=f"factory {name}",
        adapter=FactoryAdapter(made.network.float(), tuple(one.name for one in made.inputs)),
        sample_shape=tuple(made.sample_shape),
        conditioning=conditioning,
        null_class=null,
        noise_schedule=_noise_schedule(made.noise_schedule),
        decoder=None if made.decoder is None else FactoryDecoder(made.decoder),
        files=(*sources, *_files(name, [folder / file for file in made.files])),
    )
    for part, module in (("the network", model.adapter.network), ("the decoder", model.decoder)):
        if module is not None:
            check_finite(module, f"{name}, {part}")
    _check_network(name, model)
    _check_decoder(name, model)
    return model


def declare_factory(name: str, folder: Path) -> Declaration:
    """Describe a factory's model. This calls the factory.

    Raises:
        UsageError: there is no such function, or it does not return what it should.
        PtqdError: the function raised an exception.
    """
    made, _ = _made(name, folder)
    return Declaration(f"factory {name}", tuple(made.sample_shape), made.inputs, _noise_schedule(made.noise_schedule))


def _made(name: str, folder: Path) -> tuple[FactoryModel, tuple[Path, ...]]:
    """Call the factory; return its model and the source files behind it: the function's own, and its helper modules in the folder."""
    with _importable(folder):
        function = _resolve(name, folder)
        made = _call(name, function)
        source = Path(inspect.getfile(inspect.unwrap(function)))
        helpers = {*SourceTree(folder).reached(name.partition(":")[0]).values()} - {source}
        return made, (source, *sorted(helpers))


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the Python path while a factory is imported and runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _resolve(name: str, folder: Path) -> Callable[[], object]:
    module, _, function = name.partition(":")
    try:
        found = pkgutil.resolve_name(f"{module}:")
    except ImportError as error:
        raise UsageError(
            "The factory's module cannot be imported.",
            found=f"{module}: {error}",
            expected=f"a module in {folder} or on the Python path",
            mend='correct model.factory, "package.module:function"',
        ) from error
    made = getattr(found, function, None)
    if not callable(made):
        functions = [key for key, value in vars(found).items() if inspect.isfunction(value)]
        nearest = difflib.get_close_matches(function, functions, n=1, cutoff=0.0)
        raise UsageError(
            "The module has no such factory.",
            found=f"{function} in {found.__file__}",
            expected=f"a function that returns a {FactoryModel.__name__}",
            mend=f'did you mean "{module}:{nearest[0]}"?' if nearest else "write the function",
        )
    return made  # type: ignore[no-any-return]  # `_call` checks what it returns


def _call(name: str, function: Callable[[], object]) -> FactoryModel:
    try:
        made = function()
    except Exception as error:
        raise PtqdError(
            "The factory failed.", found=f"{name}: {_named(error)}", mend="call the function by itself; --debug shows where it failed"
        ) from error
    if not isinstance(made, FactoryModel):
        raise UsageError(
            "The factory returned an object of the wrong type.",
            found=f"{name}: {type(made).__name__}",
            expected=f"a {FactoryModel.__module__}.{FactoryModel.__name__}",
        )
    return made


def _files(name: str, declared: Sequence[Path]) -> Iterator[Path]:
    """Yield the declared files, and those below declared folders."""
    for path in declared:
        if not path.exists():
            raise UsageError(
                "A file that the factory declares is missing.", found=f"{name}: {path}", expected="a file, or a folder of files"
            )
        yield from files_below(path) if path.is_dir() else (path,)


def _noise_schedule(given: NoiseSchedule | Mapping[str, Any]) -> NoiseSchedule:
    return given if isinstance(given, NoiseSchedule) else NoiseSchedule.from_scheduler_config(given)


def _check_network(name: str, model: LoadedModel) -> None:
    inputs = model.example_inputs(2)
    names = ("sample", "timestep", *model.adapter.conditions)
    given = ", ".join(f"{key} {_shaped(value)}" for key, value in zip(names, inputs, strict=True))
    try:
        with torch.no_grad():
            out: object = model.adapter(*inputs)
    except Exception as error:
        raise UsageError(
            "The factory's network does not accept the declared inputs.", found=f"{name}: {_named(error)}", expected=f"network({given})"
        ) from error
    if not isinstance(out, Tensor) or out.shape != inputs[0].shape:
        raise UsageError(
            "The factory's network does not return an output of the declared shape.",
            found=f"{name}: {_shaped(out)}",
            expected=f"{_shaped(inputs[0])}, shaped like the state",
        )


def _check_decoder(name: str, model: LoadedModel) -> None:
    if model.decoder is None:
        return
    states = model.decoder.example_states(2, model.sample_shape)
    try:
        with torch.no_grad():
            images: object = model.decoder(states)
    except Exception as error:
        raise UsageError(
            "The factory's decoder does not accept the states.", found=f"{name}: {_named(error)}", expected=f"decoder({_shaped(states)})"
        ) from error
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != 2 or images.shape[1] not in (1, 3):
        raise UsageError(
            "The factory's decoder does not return images.",
            found=f"{name}: {_shaped(images)}",
            expected="float32 [2, 1 or 3, height, width]",
        )


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _shaped(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
