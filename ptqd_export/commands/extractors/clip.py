"""`ptqd-export extractor clip`: the image tower, the text tower and the tokenizer of a CLIP model, for CLIP scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from engines.apps.evaluate.extractor import FEATURES
from engines.apps.evaluate.scorers.clip_scorer import IMAGE, TEXT, TOKENIZER
from engines.errors import MissingBackendError, UsageError
from engines.host.files import writable_folder
from engines.networks.prompts import TOKEN_IDS
from ptqd_export.commands.extractors.picture_inputs import PictureNodes, take_pictures
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import trace_module
from ptqd_export.models.diffusers_folder import read_config
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import TRANSFORMERS
from ptqd_export.models.text.text_encoders import no_progress_bar
from ptqd_export.models.text.tokenizer import TokenLimits, portable_tokenizer

CLIP_TEXT = {"max_position_embeddings": 77, "vocab_size": 49408}
"""Defaults of transformers for a configuration that leaves them out, as those of the published models do."""

BICUBIC = 3
"""Pillow's number of the filter."""


class ImageTower(nn.Module):
    """Maps normalized pictures [n, 3, side, side] to embeddings [n, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network, self.projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.projection(self.network(pixel_values=pixels).pooler_output)
        return embeddings


class TextTower(nn.Module):
    """Maps token ids int64 [n, tokens] to embeddings [n, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network, self.projection = model.text_model, model.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.projection(self.network(input_ids=ids).pooler_output)
        return embeddings


@dataclass(frozen=True)
class ClipPreparation:
    """What the model's preprocessor does to a picture: bicubic resizing of the shorter side, a crop of the centre, normalization.

    Attributes:
        shortest: length that the shorter side gets, in pixels.
        crop: side of the crop, in pixels.
        mean: mean by channel, of values in [0, 1].
        deviation: standard deviation by channel.
    """

    shortest: int
    crop: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> ClipPreparation:
        """Read `preprocessor_config.json`.

        Raises:
            UsageError: the preprocessor does something else.
        """
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise UsageError("The CLIP model has no preprocessor.", found=f"no file {path}", mend="copy the whole model folder")
        config = read_config(path)
        steps = [config.get(name, True) for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")]
        size, crop = (config.get(name) for name in ("size", "crop_size"))
        shortest = size.get("shortest_edge") if isinstance(size, dict) else size
        side = crop.get("height") if isinstance(crop, dict) else crop
        if not (all(steps) and config.get("resample", BICUBIC) == BICUBIC and isinstance(shortest, int) and isinstance(side, int)):
            raise UsageError(
                "This CLIP preprocessor is not supported.",
                found=f"{path}: size {size}, crop_size {crop}, resample {config.get('resample')}",
                expected="bicubic resizing of the shortest edge, a centre crop, rescaling and normalization",
            )
        return cls(shortest, side, tuple(config["image_mean"]), tuple(config["image_std"]))

    def __call__(self, nodes: PictureNodes) -> ir.Value:
        """Create the nodes. Like Pillow, which the preprocessor uses, resize along the rows, round to 8 bits, then along the columns."""
        sides = nodes.op("Shape", nodes.picture, start=2)
        resized = nodes.op("Div", nodes.op("Mul", sides, np.array(self.shortest)), nodes.op("ReduceMin", sides))
        pixels = nodes.levels()
        for axis in (3, 2):
            length = nodes.op("Gather", resized, np.array([axis - 2]))
            smooth = nodes.resized(
                pixels, length, (axis,), mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1,
                coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
            pixels = nodes.op("Clip", nodes.op("Round", smooth), np.float32(0), np.float32(255))
        crop = nodes.op("CenterCropPad", pixels, np.array([self.crop, self.crop], np.int64), axes=[2, 3])
        mean, deviation = (np.array(values, np.float32)[None, :, None, None] for values in (self.mean, self.deviation))
        return nodes.op("Div", nodes.op("Sub", nodes.op("Div", crop, np.float32(255)), mean), deviation)


def write_clip(model: Path, output: Path) -> None:
    """Write the folder that `engines.apps.evaluate.scorers.clip_scorer.ClipScorer` reads; the tokenizer last.

    Raises:
        UsageError: the folder is no CLIP model, its preprocessor is not supported, or the output cannot be written.
        MissingBackendError: transformers is not installed.
        PtqdError: weights or tokenizer cannot be read.
    """
    preparation = ClipPreparation.read(model)
    config = model / "config.json"
    if not config.is_file():
        raise UsageError("The CLIP model has no configuration.", found=f"no file {config}", mend="copy the whole model folder")
    tokenizer = portable_tokenizer(model, TokenLimits.of(CLIP_TEXT | read_config(config).get("text_config", {}))).tokenizer
    clip = _load(model)
    folder = writable_folder(output)
    (folder / TOKENIZER).unlink(missing_ok=True)
    picture = torch.zeros(2, 3, preparation.crop, preparation.crop)
    image = trace_module(ImageTower(clip).eval(), {"images": picture}, outputs=(FEATURES,))
    take_pictures(image, preparation, f"clip-{model.resolve().name}")
    save_graph(image, folder / IMAGE)
    ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(["", "a photo of a cat"])], dtype=np.int64)
    save_graph(trace_module(TextTower(clip).eval(), {TOKEN_IDS: torch.from_numpy(ids)}, outputs=(FEATURES,)), folder / TEXT)
    tokenizer.save(str(folder / TOKENIZER))


def _load(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingBackendError("CLIP models need transformers.", found=str(error), mend="pip install transformers") from error
    if not (folder / "config.json").is_file():
        raise UsageError(
            "The CLIP model has no configuration.", found=f"no file {folder / 'config.json'}", mend="copy the whole model folder"
        )
    with no_progress_bar():
        return load_module(transformers.CLIPModel, folder, TRANSFORMERS, torch_dtype=torch.float32).eval().requires_grad_(False)
