"""One step of a chain, as users see it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.apps.pictures.images import check_drawable, picture_array
from engines.arrays import Float32
from engines.networks.image_decoder import Decoder


@dataclass(frozen=True, eq=False)
class ChainStep:
    """A step that was taken, for N samples.

    Attributes:
        index: index of the step; 0 is the noisiest.
        steps: number of steps in the chain.
        timestep: training timestep that the network got.
        precision: precision of the network.
        state: states after the step, float32 [N, C, ...]; after the last step they are the samples.
        clean: clean samples that the step predicted, float32 [N, C, ...]; None with the samplers `plms` and `deis`, whose steps
            do not predict them.
    """

    index: int
    steps: int
    timestep: float
    precision: str
    state: Float32
    clean: Float32 | None
    decoder: Decoder = field(repr=False)

    @property
    def is_last(self) -> bool:
        return self.index == self.steps - 1

    def preview(self) -> NDArray[np.uint8]:
        """Return pictures, uint8 [N, H, W, 1 or 3]: of the predicted clean samples or, without them and after the last step, of the states.

        Latent models decode them: with the bundle's small decoder for previews, if it has one, up to the last step, and with the full
        decoder after it. The full decoder can take longer than the step.

        Raises:
            UsageError: the model's samples are not pictures.
        """
        shown = self.state if self.is_last or self.clean is None else self.clean
        images = self.decoder(shown)
        check_drawable(images.shape[1:], mend="use `state`, which keeps the samples as they are")
        return np.ascontiguousarray(picture_array(images))
