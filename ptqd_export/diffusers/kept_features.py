"""Keeps features between the calls of a pipeline, which evaluates the branches of a step in one call or one after the other.

A pipeline does not say which branch a call is for, nor where a chain begins. Calls at one step with the same states are its branches,
always in the same order; other states are those of another chain. Which of both a later step continues is unknown: none may reuse features
until another step has computed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import KEPT, Engine
from engines.errors import UsageError
from engines.networks.engine_denoiser import STATE
from ptqd_export.diffusers.timesteps import TimestepNetwork


class KeptFeatures:
    """The features of the last step that computed everything, one array for each call of that step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything before another chain."""
        self._step, self._calls, self._follows, self._mixed = -1, 0, False, False
        self._states: NDArray[Any] = np.empty(0, np.float32)
        self._kept: list[Float32] = []

    def run(self, engine: Engine, visit: TimestepNetwork, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        """Run a call of a step of a chain that reuses features.

        Args:
            engine: the network that keeps features, or the one that takes them.
            visit: the step.
            feeds: inputs of the network without features.

        Raises:
            UsageError: the step reuses features, but the call before it belonged to another step than the one before, a call of that step
                is missing, or several chains have taken it.
        """
        if visit.step != self._step:
            self._follows, self._step, self._calls = visit.step == self._step + 1, visit.step, 0
            self._mixed &= visit.reuses
        elif not np.array_equal(feeds[STATE], self._states):
            self._mixed, self._calls = True, 0
        self._states = np.array(feeds[STATE])
        call, self._calls = self._calls, self._calls + 1
        if not visit.reuses:
            out, kept = engine.run_keeping(feeds)
            self._kept = [*self._kept[:call], kept]
            return out
        rows = len(feeds[STATE])
        if self._mixed or not self._follows or call >= len(self._kept) or len(self._kept[call]) != rows:
            raise UsageError(
                "The pipeline comes to a step that reuses features which it has not computed.",
                found=f"step {visit.step}, call {call}, with {rows} samples{', behind a step of several chains' if self._mixed else ''}",
                expected="every step in order and in the same calls, from one that computes everything",
                mend="take one chain after the other, each from its first step, which a higher strength makes earlier; "
                "or use one precision for all steps, which reuses nothing",
            )
        return engine.run({**feeds, KEPT: self._kept[call]})
