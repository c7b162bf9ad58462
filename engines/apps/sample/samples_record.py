"""`samples.json`: what a run of `ptqd-run sample` sampled, enough to sample it again. Written last: a folder without it is unfinished."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from engines.chain.schedule import Strict

SCHEMA_VERSION: Literal[1] = 1


class SamplesRecord(Strict):
    """The samples of one run.

    Attributes:
        seed: of the noise; with the number of a sample and its row it decides the sample.
        first: number of the first sample.
        num: how many there are.
        schedule: name of the schedule.
        precision: what was asked for: `auto`, or one precision.
        precision_steps: steps of the chain that each precision took.
        correction: whether outputs were corrected.
        guidance: scale of classifier-free guidance.
        rows: class or conditioning row of each sample, in the order of their numbers; null for an unconditional model.
        prompts: the prompts that the rows are numbers of; null where the rows are the bundle's own.
        negative_prompt: what guidance led away from; null is the model's own choice.
        files: one picture a sample in the same order, or the one archive that holds them all.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
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
    files: tuple[str, ...]
