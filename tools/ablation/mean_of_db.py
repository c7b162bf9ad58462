"""The mean over samples of their PSNR in dB, which the tables of earlier ablations have.

One sample that is nearly right moves it more than many that are wrong. It stands beside the pooled PSNR so that new tables compare with
those.
"""

from __future__ import annotations

import numpy as np

from engines.apps.evaluate.metrics.confidence import Estimate, block_edges
from engines.apps.evaluate.metrics.paired import psnr
from engines.arrays import Float64

MEAN_OF_DB = "psnr_as_mean_of_db"


def mean_of_db(errors: Float64) -> Estimate:
    """Estimate the mean PSNR in dB of samples with the mean squared errors [n]; infinite if a sample is identical to full precision's."""
    blocks = np.split(psnr(errors), block_edges(len(errors)))
    return Estimate.mean_of_blocks(np.array([block.sum() for block in blocks]), np.array([float(len(block)) for block in blocks]))
