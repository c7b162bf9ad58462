"""A bundle inside a diffusers pipeline: its engines in place of the network, its corrected schedule in place of the scheduler.

Named after the library that it plugs into. It imports torch and diffusers, and no command line imports it.
"""

from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.diffusers.install import use_bundle
from ptqd_export.diffusers.scheduler import PtqdScheduler

__all__ = ["PtqdDenoiser", "PtqdScheduler", "use_bundle"]
