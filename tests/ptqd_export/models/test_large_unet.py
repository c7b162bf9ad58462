"""Stable Diffusion 1.5's U-Net at its full size, with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WEIGHTS_GB = 859_520_964 * 4 / 1e9
LATENT = 64


@pytest.mark.slow
def test_the_860_million_parameter_u_net_is_traced_and_quantized_in_16_gigabytes(tmp_path: Path) -> None:
    """Peak memory of the build in a process of its own, and the sizes of what it wrote."""
    script = Path(__file__).with_name("large_unet_build.py")
    for half in (("write", str(tmp_path), str(LATENT)), ("build", str(tmp_path))):
        done = subprocess.run([sys.executable, str(script), *half], capture_output=True, text=True, check=False, timeout=3600)
        assert done.returncode == 0, done.stderr[-2000:]
    peak = float(done.stdout.splitlines()[-1])
    print(f"{done.stdout}\n{peak:.2f} GB")  # noqa: T201 (a figure to be seen)
    assert peak < 16
    graphs = tmp_path / "bundle" / "graphs" / "onnxruntime"
    sizes = {name: sum(path.stat().st_size for path in graphs.glob(f"{name}.onnx*")) / 1e9 for name in ("fp32", "w8a8")}
    assert sizes["fp32"] == pytest.approx(WEIGHTS_GB, rel=0.01)
    assert sizes["w8a8"] / sizes["fp32"] < 0.27
