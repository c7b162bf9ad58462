"""`samples.json`: the record of a `ptqd-run sample` run, enough to repeat it. It is written last: a folder without it is unfinished."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from engines.backends.choice import RuntimeName
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.chain.schedule import Strict
from engines.networks.lora.lora_changes import LoraRecord

RECORD = "samples.json"

SCHEMA_VERSION: Literal[2] = 2


class SamplesRecord(Strict):
    """The samples of one run.

    Attributes:
        bundle: SHA-256 of the bundle's `manifest.json`, which lists the hashes of its other files.
        bundle_schema_version: schema version of the bundle.
        seed: seed of the noise; together with a sample's number and row, it determines the sample.
        first: number of the first sample.
        num: number of samples.
        schedule: name of the schedule.
        precision: requested precision: `auto`, or one precision.
        precision_steps: number of the chain's steps that each precision took.
        correction: whether outputs were corrected.
        guidance: scale of classifier-free guidance.
        rows: class or conditioning row of each sample, in order of sample number; null for an unconditional model.
        prompts: prompts that the rows index; null if the rows are the bundle's own.
        negative_prompt: prompt that guidance steered away from; null is the model's own choice.
        strength: share of the steps that was taken from the images; null if the chains started from noise.
        size: requested height and width of the images; null is the bundle's first size.
        images: SHA-256 of the files of the images that the chains started from, one for all samples or one for each.
        mask: SHA-256 of the file of the mask; null if everything was repainted.
        control_images: SHA-256 of the files of the control images, one for all samples or one for each; null if the run named none.
        loras: LoRAs in the weights of the networks.
        runtime: runtime of the engines.
        runtime_reason: why it is this one; null in records of earlier versions.
        provider: what the runtime computed on.
        versions: versions of ptqd-export and of the runtime's package.
        files: one picture per sample in the same order, or the one archive that holds all samples.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    bundle: str
    bundle_schema_version: PositiveInt
    seed: NonNegativeInt
    first: NonNegativeInt
    num: PositiveInt
    schedule: str
    precision: str
    precision_steps: dict[str, PositiveInt]
    correction: Literal["on", "off"]
    guidance: float
    rows: tuple[NonNegativeInt, ...] | None
    prompts: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    strength: float | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None
    images: tuple[str, ...] | None = None
    mask: str | None = None
    control_images: tuple[str, ...] | None = None
    loras: tuple[LoraRecord, ...] = ()
    runtime: RuntimeName
    runtime_reason: str | None = None
    provider: Provider
    versions: dict[str, str]
    files: tuple[str, ...]
