"""Evaluation on this machine: both chains sample batch by batch from the same noise, and the sums are kept to resume from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engines.apps.evaluate.scores import SampleScores
from engines.apps.evaluate.seeded_samples import SeededSamples
from engines.chain.sampling import Chain
from engines.cluster.shards import Shards
from engines.networks.image_decoder import Decoder
from engines.terminal.progress import progress

CHECKPOINTS = 20
"""How often the sums of a seed are kept. With the features of FID each time writes up to 1.3 GB."""

FULL_PRECISION, QUANTIZED = "full_precision.", "quantized."


@dataclass(frozen=True)
class PairedChains:
    """Scores two chains on the same noise. Neither memory nor disk grows with the number of samples.

    Attributes:
        exact: the chain at full precision.
        chain: the chain that is compared with it.
        decoder: makes images of the samples.
        kept: keeps the sums, so that an interrupted run can resume; None keeps none.
    """

    exact: Chain
    chain: Chain
    decoder: Decoder
    kept: Shards | None

    def score(self, seeded: SeededSamples, label: str, first: SampleScores, second: SampleScores) -> None:
        """Add the samples of a seed to the scores of full precision (`first`) and of the other chain (`second`), from where an earlier
        run stopped.
        """
        unit = f"{seeded.noise.seed}"
        self._resume(unit, first, second)
        batches = list(seeded.batches())
        done = math.ceil(first.seen / seeded.batch_size)
        every = math.ceil(len(batches) / CHECKPOINTS)
        steps = len(self.exact.schedule.steps) + len(self.chain.schedule.steps)
        with progress(f"{label}, seed {seeded.noise.seed}", steps * len(batches)) as advance:
            for _ in range(steps * done):
                advance()
            for number, (samples, rows) in enumerate(batches[done:], start=done + 1):
                exact, other = (self.decoder(one.sample(seeded.noise, samples, rows, advance)) for one in (self.exact, self.chain))
                first.add(exact, rows=rows)
                second.add(other, exact, rows)
                if self.kept is not None and (number % every == 0 or number == len(batches)):
                    self.kept.write(unit, _named(FULL_PRECISION, first) | _named(QUANTIZED, second))

    def _resume(self, unit: str, first: SampleScores, second: SampleScores) -> None:
        if self.kept is not None and self.kept.has(unit):
            arrays = self.kept.read(unit)
            first.restore(of_chain(arrays, FULL_PRECISION))
            second.restore(of_chain(arrays, QUANTIZED))


def _named(prefix: str, scores: SampleScores) -> dict[str, NDArray[Any]]:
    return {prefix + name: array for name, array in scores.arrays().items()}


def of_chain(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the chain whose names have the prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
