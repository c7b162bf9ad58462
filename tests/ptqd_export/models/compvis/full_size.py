"""Run one half of the full-size proof in its own process.

`write FOLDER` writes a checkpoint of the published layout with random weights. `build FOLDER` builds a bundle from the checkpoint, and
prints its peak memory in GB, and the seconds of every stage on standard error. `faults FOLDER` verifies the build's graph at W8A8 again, as
it is and with every planted fault; it prints what the check says of each as one JSON object, then its peak memory in GB.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

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
    _print_peak()


def faults(folder: Path) -> None:
    import torch

    from ptqd_export.graph.checks import verify as module
    from ptqd_export.graph.checks.paired_noise import paired_noise
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.network.states import load_states
    from tests.ptqd_export.conftest import Built
    from tests.ptqd_export.graph.checks.planted_faults import FAULTS, more_noise, planted

    torch.set_num_threads(2)
    built = Built(load_plan(folder / "plan.json"))
    graph, states, layers = built.stage("quantize-w8a8") / "w8a8.onnx", load_states(built.stage("states")), built.quantize("w8a8")
    reference = module.full_precision_outputs(built.context.model, states)

    def verify(graph: Path) -> module.Verification:
        return module.verify(built.context.model, graph, layers, states, reference=reference)

    with patch.object(module, "paired_noise", wraps=paired_noise) as noise:
        said = {"none": _said(lambda: verify(graph))}
    _, oracle, fast = noise.call_args.args
    noisy = more_noise(fast, module.snr_db(reference, fast), share=0.5)
    said["noise 50 % higher"] = _said(lambda: module._check_noise(graph, paired_noise(reference, oracle, noisy)))
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory(dir=folder) as copy:
            wrong = planted(fault, graph, Path(copy), "unet.")
            said[name] = _said(lambda wrong=wrong: verify(wrong))  # type: ignore[misc]  # a lambda of one argument with a default
    sys.stdout.write(json.dumps(said) + "\n")
    _print_peak()


def _said(check: Callable[[], object]) -> str:
    """Return the check's complaint, or nothing."""
    from engines.errors import PtqdError

    begin, complaint = time.perf_counter(), ""
    try:
        check()
    except PtqdError as error:
        complaint = str(error)
    sys.stderr.write(f"{time.perf_counter() - begin:.0f} s: {complaint or 'passed'}\n")
    return complaint


def _print_peak() -> None:
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}\n")


if __name__ == "__main__":
    {"write": write, "build": build, "faults": faults}[sys.argv[1]](Path(sys.argv[2]))
