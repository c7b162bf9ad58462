"""Run one half of the full-size proof in its own process.

`write FOLDER` writes a checkpoint of the published layout with random weights. `build FOLDER` builds a bundle from the checkpoint, and
prints its peak memory in GB, and the seconds of every stage on standard error.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

MODEL = "cin256-v2"
PLAN = {
    "model": {"path": "model.ckpt"},
    "sampler": {"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.0},
    "precisions": ["w8a8", "w4a8"],
    "calibration": {"samples": 2, "batch_size": 1, "activation_samples": 2},
    "correction": {"mode": "ptqd"},
    "target": {"name": "onnxruntime", "threads": 2, "benchmark_batch": 1},
    "output": "bundle",
}
"""The smallest plan that runs every stage: the proof is about structure and memory, which do not depend on the number of samples."""


def write(folder: Path) -> None:
    import torch

    from tests.ptqd_export.models.compvis.published import config, layout, random_tensors, write_yaml

    write_yaml(config(MODEL), folder / "config.yaml")
    torch.save({"state_dict": dict(random_tensors(layout(MODEL), config(MODEL)))}, folder / "model.ckpt")
    (folder / "plan.json").write_text(json.dumps(PLAN))


def build(folder: Path) -> None:
    import torch

    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build

    torch.set_num_threads(2)
    run_build(load_plan(folder / "plan.json"))
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}\n")


if __name__ == "__main__":
    {"write": write, "build": build}[sys.argv[1]](Path(sys.argv[2]))
