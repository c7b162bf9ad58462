"""A bundle opened from Python, for sampling and for looking at what it contains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from engines.api.chain_step import ChainStep
from engines.api.layer_info import LayerInfo, layers_of
from engines.api.precision_info import PrecisionInfo, precisions_of
from engines.api.schedule_info import ScheduleInfo, schedules_of
from engines.apps.asked.asked_samples import AskedSamples, DrawnSamples
from engines.apps.asked.control_images import AskedControl
from engines.apps.asked.edit import Edit, GivenImages
from engines.apps.pictures.images import check_drawable
from engines.apps.pictures.rendering import PIXELS, SAMPLES
from engines.backends.choice import Runtime, runtime_name
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.image_size import ImageSize, size_name
from engines.chain.sampling import Chain
from engines.chain.stepper import HostStepper
from engines.errors import UsageError
from engines.host.heap import release_free_pages
from engines.networks.chain_choice import AUTO, ChainChoice
from engines.networks.control import OwnNetwork
from engines.networks.kept_engines import KeptEngines
from engines.networks.lora.lora_use import GivenLoras, LoraUse, lora_uses
from engines.networks.prompts import TextModel, open_text
from engines.samplers import SAMPLERS

WITHOUT_CLEAN = tuple(name for name, sampler in SAMPLERS.items() if not sampler.predicts_clean)
"""Samplers whose steps do not predict the clean sample, see `engines.samplers.table`."""

Classes = Sequence[int] | Literal["all"] | None
Prompts = Sequence[str] | str | None


def open_bundle(path: str | PathLike[str], *, runtime: Runtime = "target", threads: int | None = None) -> OpenBundle:
    """Open a bundle that `ptqd-export build` or `ptqd_export.build` wrote.

    Args:
        path: folder of the bundle.
        runtime: runtime of the engines; `target` is the one that the bundle was built for.
        threads: threads of a CPU runtime; None uses every core that the process may use.

    Raises:
        UsageError: the folder contains no bundle, or there is no such runtime.
        BundleError: the manifest is damaged or has another schema version.
    """
    bundle = Bundle.open(Path(path))
    runtime_name(bundle, runtime)  # refuses an unknown runtime now, not at the first sample
    return OpenBundle(bundle, runtime, threads)


class OpenBundle:
    """A bundle with its engines. An engine opens when a chain first needs it and stays open until `close`, or the end of a `with` block.

    Samples are those of `ptqd-run sample`: the same seed, number, class and batch size give the same pixels on one machine.
    One thread at a time may sample.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime = "target", threads: int | None = None) -> None:
        self._bundle = bundle
        self._runtime = runtime
        self._threads = threads
        self._kept: dict[str, KeptEngines] | None = {}
        self._text: TextModel | None = None

    def __repr__(self) -> str:
        return f"OpenBundle({str(self.folder)!r}, precisions={[*self.precisions]}, schedules={[*self._bundle.schedules]})"

    @property
    def folder(self) -> Path:
        return self._bundle.folder

    @property
    def sizes(self) -> tuple[ImageSize, ...]:
        """Height and width of the pictures in pixels, for every size of the bundle."""
        return tuple((height, width) for height, width in (model.image_size for model in self._bundle.manifest.models))

    @cached_property
    def schedules(self) -> Mapping[str, ScheduleInfo]:
        """The settings of every schedule by name."""
        return schedules_of(self._bundle)

    @cached_property
    def precisions(self) -> Mapping[str, PrecisionInfo]:
        """Every precision by name."""
        return precisions_of(self._bundle)

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Every layer with weights, in the network's order."""
        return layers_of(self._bundle)

    def sample(
        self,
        num: int = 8,
        *,
        seed: int = 1,
        first: int = 0,
        classes: Classes = None,
        prompts: Prompts = None,
        negative_prompt: str | None = None,
        image: GivenImages | None = None,
        strength: float | None = None,
        mask: GivenImages | None = None,
        control_image: GivenImages | None = None,
        control: OwnNetwork | None = None,
        precision: str | None = None,
        schedule: str = DEFAULT,
        correction: bool = True,
        guidance: float | None = None,
        accept_guidance: bool = False,
        loras: GivenLoras = None,
        batch_size: int = 64,
        latents: bool = False,
        size: ImageSize | None = None,
    ) -> NDArray[Any]:
        """Return samples: pictures uint8 [N, H, W, 1 or 3], or with `latents` the final states float32 [N, C, ...].

        Args:
            num: number of samples N.
            seed: seed of the noise.
            first: number of the first sample. A sample depends only on the seed, its number and its class or prompt.
            classes: classes that the samples take in turn, `all` for every class, or None to draw each sample's class from the seed.
            prompts: for a text model, prompts that the samples take in turn.
            negative_prompt: prompt that guidance steers away from.
            image: image to start from: a PNG file or uint8 pixels [H, W] or [H, W, C]; or one for each sample: a folder of PNG files, in
                the order of their names, or pixels [N, H, W, C].
            strength: share of the steps to take from `image`, above 0 and at most 1; None takes 0.8, and 1 for inpainting networks.
            mask: PNG file, or pixels [H, W], white where `image` is repainted. The rest is kept.
            control_image: image for the bundle's control network, or one for each sample; in the forms of `image`.
            control: your own control network: takes what the network is given at a step, states float32 [B, C, ...], timesteps [B] and
                conditions by name [B, ...], and returns the residuals by input name, [B, ...]. B is twice the batch under guidance, the
                conditional half first.
            precision: precision of every step; None takes the schedule's choice.
            schedule: name of the schedule.
            correction: False runs the plain quantized sampler.
            guidance: guidance scale; None takes the schedule's.
            accept_guidance: allow a guidance scale that the corrections were not fitted at.
            loras: LoRAs to put into the weights: files with their scales, or files at scale 1. Engines of the LoRAs last used stay open.
            batch_size: number of samples that the networks process at once.
            latents: return the states instead of pictures.
            size: height and width of the pictures in pixels, one of `sizes`; None takes the first.

        Raises:
            UsageError: the request does not fit the bundle, or the bundle was closed.
            MissingBackendError: the runtime or its device is missing.
            PtqdError: a file of the bundle is damaged, or a network failed.
        """
        if batch_size < 1:
            raise UsageError("The batch size is out of range.", found=batch_size, expected="1 or more")
        if not latents:
            check_drawable(self._bundle.at(size).manifest.model.image_shape, mend="use latents=True, which returns the samples as they are")
        edit = Edit.of(image, mask)
        asked = AskedControl.of(control_image, control)
        choice = self._choice(precision, schedule, guidance, strength, loras, size, correction=correction, accept_guidance=accept_guidance)
        drawn = self._drawn(num, seed, first, classes, prompts, negative_prompt, choice, edit, asked)
        work = drawn.work(batch_size, "states" if latents else "pixels")
        sampler = work.open(self._bundle.at(size), self._threads, self._engines(size))
        kept = SAMPLES if latents else PIXELS
        return np.ascontiguousarray(np.concatenate([sampler(batch)[kept] for batch in drawn.batches(batch_size)]))

    def chain(
        self,
        num: int = 1,
        *,
        seed: int = 1,
        first: int = 0,
        classes: Classes = None,
        prompts: Prompts = None,
        negative_prompt: str | None = None,
        image: GivenImages | None = None,
        strength: float | None = None,
        mask: GivenImages | None = None,
        control_image: GivenImages | None = None,
        control: OwnNetwork | None = None,
        precision: str | None = None,
        schedule: str = DEFAULT,
        correction: bool = True,
        guidance: float | None = None,
        accept_guidance: bool = False,
        loras: GivenLoras = None,
        size: ImageSize | None = None,
    ) -> Iterator[ChainStep]:
        """Return an iterator over the steps of a chain of N samples, which takes a step each time. Stop it whenever you like.

        The arguments are those of `sample`; all N samples are one batch. The request is checked and the engines open before the first step.

        Raises:
            UsageError: see `sample`.
            MissingBackendError: see `sample`.
            PtqdError: see `sample`.
        """
        edit = Edit.of(image, mask)
        asked = AskedControl.of(control_image, control)
        choice = self._choice(precision, schedule, guidance, strength, loras, size, correction=correction, accept_guidance=accept_guidance)
        drawn = self._drawn(num, seed, first, classes, prompts, negative_prompt, choice, edit, asked)
        engines = self._engines(size)
        return self._steps(drawn.work(num, "states").chain(self._bundle.at(size), engines), drawn, engines)

    def close(self) -> None:
        """Close the engines and free their memory. The bundle can no longer sample."""
        self._kept = self._text = None
        release_free_pages()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _engines(self, size: ImageSize | None) -> KeptEngines:
        if self._kept is None:
            raise UsageError("The bundle was closed.", found=self.folder, expected="an open bundle", mend="open it again")
        bundle = self._bundle.at(size)
        name = size_name(bundle.manifest.model.image_size)
        if name not in self._kept:
            self._kept[name] = KeptEngines(bundle, self._runtime, self._threads)
        return self._kept[name]

    def _choice(
        self,
        precision: str | None,
        schedule: str,
        guidance: float | None,
        strength: float | None,
        loras: GivenLoras,
        size: ImageSize | None,
        *,
        correction: bool,
        accept_guidance: bool,
    ) -> ChainChoice:
        corrected: Literal["on", "off"] = "on" if correction else "off"
        used = lora_uses(loras)
        self._tell_ignored(used, size)
        return ChainChoice(
            schedule, precision or AUTO, corrected, guidance, accept_guidance, self._runtime, strength=strength, loras=used, size=size
        )

    def _tell_ignored(self, loras: tuple[LoraUse, ...], size: ImageSize | None) -> None:
        changed = self._engines(size).changed(loras)
        for ignored in () if changed is None else changed.changes.ignored:
            warnings.warn(ignored, stacklevel=4)

    def _drawn(
        self,
        num: int,
        seed: int,
        first: int,
        classes: Classes,
        prompts: Prompts,
        negative_prompt: str | None,
        choice: ChainChoice,
        edit: Edit | None,
        control: AskedControl | None,
    ) -> DrawnSamples:
        rows = classes if classes is None or isinstance(classes, str) else tuple(classes)
        texts = (prompts,) if isinstance(prompts, str) else None if prompts is None else tuple(prompts)
        asked = AskedSamples(num, seed, first, rows, texts, negative_prompt, choice, edit, control)
        drawn = asked.of(self._bundle.at(choice.size), self._encoders)
        if drawn.cut:
            cut = ", ".join(map(str, drawn.cut))
            warnings.warn(f"cut off because they were too long for the text encoder: prompts {cut}", stacklevel=3)
        return drawn

    def _encoders(self, bundle: Bundle) -> TextModel:
        if self._text is None:
            self._text = open_text(bundle)
        assert bundle.manifest.model.text is not None
        return replace(self._text, record=bundle.manifest.model.text)  # all sizes share the encoders

    @staticmethod
    def _steps(chain: Chain, drawn: DrawnSamples, engines: KeptEngines) -> Iterator[ChainStep]:
        stepper, predicts = HostStepper(chain.denoisers), chain.schedule.sampler.name not in WITHOUT_CLEAN
        for move in chain.walk(stepper, drawn.noise, drawn.samples, drawn.network_rows):
            last = move.index == len(chain.schedule.steps) - 1
            yield ChainStep(
                index=move.index,
                steps=len(chain.schedule.steps),
                timestep=move.step.timestep,
                precision=move.precision,
                state=stepper.state().copy(),
                clean=stepper.predicted() if predicts else None,
                decoder=engines.decoder if last else engines.preview,
            )
