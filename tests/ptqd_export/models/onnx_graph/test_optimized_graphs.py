"""U-Nets that ONNX Runtime's own optimizer rewrote for GPUs, against the graph from before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn
from torch.nn import functional

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.onnx_model import load_onnx
from ptqd_export.models.onnx_graph.reading.runnable_graph import runnable_graph
from ptqd_export.plan.graph_section import GraphSection
from tests.ptqd_export.models.onnx_graph.onnx_graphs import graph_file, node, random
from tests.ptqd_export.models.onnx_graph.test_exported_graphs import _conditional
from tests.ptqd_export.models.onnx_graph.test_graph_module import module_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

GPU_ONLY = {"BiasAdd", "BiasSplitGelu", "GroupNorm", "NhwcConv", "SkipGroupNorm"}


@pytest.fixture(scope="module")
def exported_unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    from diffusers.models.attention_processor import AttnProcessor

    network, condition, name = _conditional()
    network.unet.set_attn_processor(AttnProcessor())  # attention written out, as the optimizer looks for it
    path = tmp_path_factory.mktemp("unet") / "unet.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs: Any = (torch.randn(2, 4, 8, 8), torch.tensor(5), condition.repeat(2, 1, 1))
        free = {"sample": {0: "batch"}, name: {0: "batch"}}
        names = ["sample", "timestep", name]
        torch.onnx.export(network, inputs, path, input_names=names, opset_version=17, dynamo=False, dynamic_axes=free)
    return path, network


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ({"enable_bias_add": True}, {*GPU_ONLY, "MultiHeadAttention", "SkipLayerNormalization"}),
        (
            {"group_norm_channels_last": False, "enable_skip_group_norm": False, "enable_packed_qkv": False, "enable_packed_kv": False},
            {"Attention", "MultiHeadAttention", "GroupNorm", "BiasSplitGelu", "NhwcConv"},
        ),
    ],
    ids=["packed", "channels first"],
)
def test_an_optimized_unet_is_the_one_from_before(
    exported_unet: tuple[Path, nn.Module], tmp_path: Path, options: Mapping[str, bool], operators: set[str]
) -> None:
    path, network = exported_unet
    asked = FusionOptions("unet")
    for key, value in options.items():
        setattr(asked, key, value)
    optimized = optimize_model(str(path), model_type="unet", opt_level=0, optimization_options=asked, use_gpu=True)
    optimized.save_model_to_file(str(tmp_path / "unet.onnx"))
    assert operators <= {one.op_type for one in onnx.load(tmp_path / "unet.onnx").graph.node if one.domain == "com.microsoft"}
    np.savez(tmp_path / "c.npz", encoder_hidden_states=random(3, 5, 12))
    model = load_onnx(tmp_path / "unet.onnx", GraphSection.model_validate({"schedule": {}}), tmp_path, None, tmp_path / "c.npz")
    inputs = model.example_inputs(3)
    with torch.no_grad():
        expected = network(*inputs)
        assert float((model.adapter(*inputs) - expected).abs().max() / expected.abs().max()) < 1e-5
    layers = [part for part in model.adapter.network.modules() if isinstance(part, nn.Conv2d)]
    assert len(layers) == len([part for part in network.modules() if isinstance(part, nn.Conv2d)])


def _group_norm(path: Path, constants: Mapping[str, NDArray[Any]], skip: tuple[int, ...], **attributes: int) -> Path:
    nodes = [node("SkipGroupNorm", ["x", "g", "b", "s", "a"], ["out", "sum"], "com.microsoft", groups=2, epsilon=1e-3, **attributes)]
    return graph_file(path, nodes, {"x": ("FLOAT", ["n", 3, 5, 4]), "s": ("FLOAT", ["n", *skip[1:]])}, constants)


@pytest.mark.parametrize("skip", [(3, 4), (3, 1, 1, 4), (3, 3, 5, 4)])
def test_a_skip_of_every_form_and_a_bias_are_added_before_the_norm(tmp_path: Path, skip: tuple[int, ...]) -> None:
    """There are as many rows as pixels in a column, so that a skip of rows also fits where it does not belong."""
    constants = {"g": random(4), "b": random(4, 1)[:, 0], "a": random(1, 4)[0]}
    x, skips = random(3, 3, 5, 4), random(*skip)
    total = torch.from_numpy(x + skips.reshape(3, *(skip[1:-1] or (1, 1)), 4) + constants["a"]).permute(0, 3, 1, 2)
    scale, shift = torch.from_numpy(constants["g"]), torch.from_numpy(constants["b"])
    expected = functional.silu(functional.group_norm(total, 2, scale, shift, 1e-3)).permute(0, 2, 3, 1)
    found = module_of(_group_norm(tmp_path / "g.onnx", constants, skip, activation=1))(torch.from_numpy(x), torch.from_numpy(skips))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="activation 7"):
        module_of(_group_norm(tmp_path / "g.onnx", constants, skip, activation=7))


def test_a_group_norm_in_16_bits_runs_from_opset_13_on(tmp_path: Path) -> None:
    constants = {"g": random(4).astype(np.float16), "b": random(4)[::-1].astype(np.float16)}
    nodes = [node("GroupNorm", ["x", "g", "b"], "h", "com.microsoft", groups=2, activation=0), node("Cast", "h", "out", to=1)]
    x = random(2, 3, 5, 4).astype(np.float16)
    inner = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)
    scale, shift = (torch.from_numpy(one.astype(np.float32)) for one in constants.values())
    expected = functional.group_norm(inner, 2, scale, shift).permute(0, 2, 3, 1).numpy()
    for opset in (13, 14):
        path = graph_file(tmp_path / f"{opset}.onnx", nodes, {"x": ("FLOAT16", ["n", 3, 5, 4])}, constants, opset=opset)
        (tmp_path / "copies").mkdir(exist_ok=True)
        session = ort.InferenceSession(runnable_graph(path, tmp_path / "copies"), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": x})
        np.testing.assert_allclose(found, expected, atol=1e-2)
    old = graph_file(tmp_path / "old.onnx", nodes, {"x": ("FLOAT16", ["n", 3, 5, 4])}, constants, opset=12)
    with pytest.raises(UsageError, match="opset 12"):
        runnable_graph(old, tmp_path / "copies")
