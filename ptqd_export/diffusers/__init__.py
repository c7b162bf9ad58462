"""Use a bundle in a diffusers pipeline: its engines replace the network, and its corrected schedule replaces the scheduler.

The package is named after the library that it plugs into. It imports torch and diffusers, and no command line imports it.
"""

from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.diffusers.install import use_bundle
from ptqd_export.diffusers.scheduler import PtqdScheduler

__all__ = ["PtqdDenoiser", "PtqdScheduler", "use_bundle"]
