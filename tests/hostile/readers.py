"""Every kind of file that the project reads besides bundles, each with a valid example."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.image_archive import ImageArchive
from engines.apps.evaluate.reference import Reference
from engines.errors import PtqdError
from engines.networks.conditioning import load_table
from engines.networks.prompts import read_prompts
from ptqd_export.models.compvis.compvis_config import read_config
from ptqd_export.models.load import declare_model
from ptqd_export.models.lora import load_lora
from ptqd_export.models.tensors.checkpoint import read_tensors
from ptqd_export.models.tensors.weight_files import TRANSFORMERS, find_weights
from ptqd_export.plan import load_plan
from ptqd_export.records.times_file import read_times
from tests.engines.apps.evaluate.conftest import SHAPE, TinyExtractor
from tests.hostile.mutations import damaged, damaged_archive, damaged_json
from tests.ptqd_export.models.compvis.published import config

ROOT = Path(__file__).parents[2]
TIMES = {"processor": "A", "cores": 2, "provider": "CPU", "batch": 8, "guided": True, "milliseconds_a_step": {"fp32": 8.0}}
IMAGES = np.random.default_rng(1).uniform(-1, 1, (40, *SHAPE)).astype(np.float32)
LORA = "unet.down_blocks.0.attentions.0.to_q"


@dataclass(frozen=True)
class Reader:
    """One kind of file and its reader.

    Attributes:
        path: path of a valid file.
        read: function that reads the file.
        is_json: whether the file is JSON, whose structure can be damaged.
        is_archive: whether the file is an archive, whose arrays can be damaged.
    """

    path: Path
    read: Callable[[Path], object]
    is_json: bool = False
    is_archive: bool = False

    def check(self, data: Any) -> str:
        """Damage the file and read it; return `refused` or `harmless`. Any error that is not a `PtqdError` is a failure."""
        content = self.path.read_bytes()
        by_structure = data.draw(st.booleans())
        if self.is_json and by_structure:
            changed = data.draw(damaged_json(json.loads(content))).encode()
        elif self.is_archive and by_structure:
            changed = data.draw(damaged_archive(content))
        else:
            changed = data.draw(damaged(content))
        self.path.write_bytes(changed)
        try:
            self.read(self.path)
        except PtqdError:
            return "refused"
        finally:
            self.path.write_bytes(content)
        return "harmless"


def readers(folder: Path) -> dict[str, Reader]:
    """Return the readers by kind, and write their files to the folder."""
    extractor = Extractor(TinyExtractor().save(folder / "extractor.onnx"), threads=1)
    images, statistics, rows = folder / "images.npz", folder / "statistics.npz", folder / "rows.npz"
    np.savez(images, samples=IMAGES)
    Reference.of_images(ImageArchive.open(images), extractor).save(statistics, extractor)
    np.savez(rows, hidden=np.ones((3, 4, 2), np.float32), allow_pickle=False)
    model = Path(shutil.copytree(ROOT / "tools" / "digits" / "model", folder / "model"))
    plan = Path(shutil.copy(ROOT / "tools" / "digits" / "plan.json", folder / "plan.json"))
    (folder / "times.json").write_text(json.dumps(TIMES))
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    (folder / "model.yaml").write_text(json.dumps(config("lsun-bedrooms")))  # JSON is YAML
    save_file({f"{LORA}.lora_A.weight": torch.ones(2, 4), f"{LORA}.lora_B.weight": torch.ones(4, 2)}, folder / "lora.safetensors")
    tensors = {"model.weight": torch.arange(6.0).reshape(2, 3), "model.bias": torch.ones(3)}
    save_file(tensors, folder / "tensors.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "tensors.ckpt")

    shards = folder / "shards" / "model.safetensors.index.json"
    shards.parent.mkdir()
    shards.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}))
    save_file(tensors, shards.parent / "model-00001-of-00001.safetensors")

    def load_reference(path: Path) -> object:
        return Reference.load(path, extractor, SHAPE)

    def declare(path: Path) -> object:
        del path
        return declare_model(str(model), model.parent)

    return {
        "plan": Reader(plan, load_plan, is_json=True),
        "times": Reader(folder / "times.json", read_times, is_json=True),
        "network configuration": Reader(model / "unet" / "config.json", declare, is_json=True),
        "scheduler configuration": Reader(model / "scheduler" / "scheduler_config.json", declare, is_json=True),
        "reference images": Reader(images, load_reference, is_archive=True),
        "reference statistics": Reader(statistics, load_reference, is_archive=True),
        "conditions": Reader(rows, load_table, is_archive=True),
        "prompts": Reader(folder / "prompts.txt", read_prompts),
        "YAML": Reader(folder / "model.yaml", read_config, is_json=True),
        "LoRA": Reader(folder / "lora.safetensors", lambda path: load_lora(path, 1.0)),
        "safetensors": Reader(folder / "tensors.safetensors", read_tensors),
        "index of shards": Reader(shards, lambda path: find_weights(path.parent, TRANSFORMERS), is_json=True),
        "checkpoint": Reader(folder / "tensors.ckpt", read_tensors),
    }


KINDS = (
    "plan", "times", "network configuration", "scheduler configuration", "reference images", "reference statistics", "conditions",
    "prompts", "YAML", "LoRA", "safetensors", "index of shards", "checkpoint",
)  # fmt: skip
"""The keys of `readers`."""
