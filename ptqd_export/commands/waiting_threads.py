"""How PyTorch's threads wait for each other."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Let the threads of PyTorch sleep while they wait, unless the user says otherwise. Call this before PyTorch is imported.

    By default GNU OpenMP's threads spin. While another process occupies a core, the small operations of a small network then take up to 70
    times as long: every operation waits for a thread that cannot run, and its own spinning threads keep it from running.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
