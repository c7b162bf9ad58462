"""Which samples a user asks for, checked against the bundle before any engine opens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from engines.apps.asked.batch_sampler import Batch, SampleWork
from engines.apps.asked.control_images import AskedControl
from engines.apps.asked.edit import Edit, chosen_strength
from engines.apps.chosen_rows import chosen_rows
from engines.apps.pictures.rendering import Format
from engines.arrays import Int64
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import ModelRecord
from engines.chain.denoiser import is_guided
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.conditioning import Conditioning
from engines.networks.encoder import check_unpainted
from engines.networks.engine_bank import load_conditioning
from engines.networks.prompts import TextModel, open_text, text_record


@dataclass(frozen=True)
class AskedSamples:
    """Samples that a user asks for.

    Attributes:
        num: number of samples.
        seed: seed of the noise.
        first: number of the first sample.
        classes: rows that the samples take in turn, `all` for every row, or None to draw each sample's row from (seed, number).
        prompts: prompts for a text model, which the samples take in turn instead of the bundle's own rows; or None.
        negative_prompt: prompt that guidance steers away from, used with `prompts`; None is the model's own choice.
        chain: how to sample.
        edit: images that the samples start from; None starts from noise.
        control: what gives the residuals of a control network; None takes those of the bundle's own rows, and zeros for prompts.
    """

    num: int
    seed: int
    first: int = 0
    classes: tuple[int, ...] | Literal["all"] | None = None
    prompts: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    chain: ChainChoice = field(default_factory=ChainChoice)
    edit: Edit | None = None
    control: AskedControl | None = None

    def of(self, bundle: Bundle, open_encoders: Callable[[Bundle], TextModel] = open_text) -> DrawnSamples:
        """Return the samples of a bundle.

        Args:
            bundle: bundle to sample from.
            open_encoders: opens the bundle's text encoders; called only if there are prompts.

        Raises:
            UsageError: the samples do not fit the bundle.
            MissingBackendError: prompts need a package that is missing.
            PtqdError: a file of the bundle is damaged.
        """
        drawn = self.checked(bundle)
        if self.prompts is not None:
            text = open_encoders(bundle)
            drawn = replace(drawn, conditioning=text.condition(self.prompts, self.negative_prompt), cut=text.cut(self.prompts))
        return drawn.by_sample(bundle) if self._differs_by_sample(bundle.manifest.model) else drawn

    def checked(self, bundle: Bundle) -> DrawnSamples:
        """Return the samples without what their prompts and images give the network, after every check that needs no text encoder.

        Raises:
            UsageError: the samples do not fit the bundle.
            PtqdError: a file of the bundle is damaged.
        """
        model = bundle.manifest.model
        noise, samples = NoiseSource(self.seed, model.sample_shape), self._numbers()
        choice = replace(self.chain, strength=chosen_strength(self.edit, self.chain.strength, model))
        self._check_edit(bundle)
        if self.control is not None:
            self.control.check(model, self.num)
        self._check_prompts(bundle)
        prompts = self.prompts or ()
        rows = samples % len(prompts) if prompts else chosen_rows(self.classes, samples, noise, model.conditioning)
        chain = choice.chosen(bundle)
        if self.negative_prompt is not None and not is_guided(chain.scale):
            raise UsageError(
                "A negative prompt needs guidance.",
                found=f"guidance {chain.scale:g}",
                expected="a guidance scale above 1, or no negative prompt",
            )
        if prompts and self.edit is None:
            check_unpainted(bundle)
        return DrawnSamples(choice, chain, noise, samples, rows, None, (), self.edit, self.control)

    def _differs_by_sample(self, model: ModelRecord) -> bool:
        """Whether samples of one row differ in what the network is given."""
        painted = self.edit is not None and model.repaints and len(self.edit.images) > 1
        return painted or (self.control is not None and len(self.control.images) > 1)

    def _check_edit(self, bundle: Bundle) -> None:
        if self.edit is None and self.chain.strength is not None:
            raise UsageError("A strength needs an image to start from.", found="a strength without an image", expected="an image as well")
        if self.edit is None:
            return
        if self.edit.mask is not None and self.chain.update == "device":
            raise UsageError(
                "The device cannot keep a part of an image.", found="--update device with --mask", expected="--update host, or no mask"
            )
        self.edit.check(bundle, self.num)

    def _numbers(self) -> Int64:
        """Return the sample numbers [N], after checking the fields that the command line checks itself."""
        if self.num < 1:
            raise UsageError("The number of samples is out of range.", found=self.num, expected="1 or more")
        end = self.first + self.num
        if self.first < 0 or end > 2**63:
            found = self.first if self.first < 0 else end - 1
            raise UsageError("A sample number is out of range.", found=found, expected="0 to 2^63 - 1")
        if () in (self.classes, self.prompts):
            raise UsageError("The list of classes or prompts is empty.", found="an empty list", expected="one entry or more, or None")
        return self.first + np.arange(self.num, dtype=np.int64)

    def _check_prompts(self, bundle: Bundle) -> None:
        if self.prompts is None:
            if self.negative_prompt is not None:
                raise UsageError("A negative prompt needs prompts.", found="a negative prompt without prompts", expected="prompts as well")
            return
        if self.classes is not None:
            raise UsageError("Prompts and classes cannot be combined.", found="prompts and classes", expected="only one of them")
        text_record(bundle)


@dataclass(frozen=True, eq=False)
class DrawnSamples:
    """Samples of a bundle, not computed yet.

    Attributes:
        choice: how to sample.
        chain: the chain without engines.
        noise: noise of every sample.
        samples: [N] sample numbers.
        rows: [N] conditioning rows; None for an unconditional model.
        conditioning: conditioning rows that replace the bundle's own, or None.
        cut: numbers of the prompts that are too long for the text encoder.
        edit: images that the samples start from; None starts from noise.
        control: what gives the residuals of a control network, or None.
        is_by_sample: whether row n of `conditioning` is that of the n-th sample.
    """

    choice: ChainChoice
    chain: Chain
    noise: NoiseSource
    samples: Int64
    rows: Int64 | None
    conditioning: Conditioning | None
    cut: tuple[int, ...]
    edit: Edit | None = None
    control: AskedControl | None = None
    is_by_sample: bool = False

    def by_sample(self, bundle: Bundle) -> DrawnSamples:
        """Return the samples with a row of conditioning for each, because they differ in what belongs to a row."""
        table = self.conditioning or load_conditioning(bundle)
        assert table is not None, "a network that takes residuals or pictures takes conditions"
        return replace(self, conditioning=table.at(self.network_rows), is_by_sample=True)

    @property
    def network_rows(self) -> Int64:
        """The conditioning rows [N] that the networks get; unconditional models ignore them."""
        if self.is_by_sample:
            return np.arange(len(self.samples), dtype=np.int64)
        return np.zeros_like(self.samples) if self.rows is None else self.rows

    def batches(self, size: int) -> list[Batch]:
        """Return the samples in batches of at most `size`."""
        return [*zip(batches(self.samples, size), batches(self.network_rows, size), strict=True)]

    def work(self, batch: int, kept: Format) -> SampleWork:
        """Return the work of sampling in batches of `batch` samples.

        Args:
            batch: number of samples that the networks process at once.
            kept: what to keep of the samples.
        """
        return SampleWork(
            self.choice,
            min(batch, len(self.samples)),
            self.noise.seed,
            kept,
            self.conditioning,
            self.edit,
            int(self.samples[0]),
            self.control,
        )
