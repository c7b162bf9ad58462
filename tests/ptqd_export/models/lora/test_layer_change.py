"""What is added to a layer, against the published formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.ptqd_export.models.lora.loras import RANK, SCALE, array, factors, fuse, fused_by_hand, network_with

LAYERS: Mapping[str, Callable[[], nn.Linear | nn.Conv2d]] = {
    "linear": lambda: nn.Linear(6, 4),
    "convolution": lambda: nn.Conv2d(6, 4, 3),
    "square": lambda: nn.Conv2d(4, 4, 3),
}
PAIR = ("unet.proj.lora_A.weight", "unet.proj.lora_B.weight")


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def changed(folder: Path, layer: nn.Linear | nn.Conv2d, tensors: dict[str, Tensor]) -> nn.Linear | nn.Conv2d:
    fuse(folder, tensors, "unet", network_with("proj", layer))
    return layer


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "names", ["lora_magnitude_vector", "lora_magnitude_vector.weight", "dora_scale of outputs", "dora_scale of inputs"]
)
def test_dora_gives_the_changed_weight_its_norms(tmp_path: Path, kind: str, names: str) -> None:
    layer = LAYERS[kind]()
    out, into, *kernel = layer.weight.shape
    name, _, of = names.partition(" of ")
    axis = 1 if of == "inputs" else 0
    size, ones = (out, into)[axis], [1] * len(kernel)
    stored = (1, size, *ones) if (axis or (not of and kernel)) else (size, 1, *ones) if of else (size,)  # PEFT stores [1, out, 1, 1]
    magnitude, (down, up) = random(*stored).abs() + 0.5, factors(layer)
    merged = fused_by_hand(array(layer.weight), down, up, RANK)
    norms = np.sqrt((merged**2).sum(axis=tuple(i for i in range(merged.ndim) if i != axis), keepdims=True))
    expected = merged / norms * array(magnitude).reshape([size if i == axis else 1 for i in range(merged.ndim)])
    changed(tmp_path, layer, {PAIR[0]: down, PAIR[1]: up, f"unet.proj.{name}": magnitude})
    np.testing.assert_allclose(array(layer.weight), expected, atol=1e-5)


def test_a_tucker_decomposition_is_three_convolutions(tmp_path: Path) -> None:
    layer, plain = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    down, mid, up = random(2, 6, 1, 1), random(3, 2, 3, 3), random(4, 3, 1, 1)
    names = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    changed(tmp_path, layer, {f"lora_unet_proj.{name}.weight": value for name, value in names.items()})
    x = random(1, 6, 5, 5)
    expected = plain(x) + SCALE * F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up)
    torch.testing.assert_close(layer(x), expected)


def test_a_bias_of_the_second_factor_is_scaled_like_the_factors(tmp_path: Path) -> None:
    layer, bias = nn.Linear(6, 4), random(4)
    before, (down, up) = array(layer.bias), factors(layer)
    changed(tmp_path, layer, {PAIR[0]: down, PAIR[1]: up, "unet.proj.lora_B.bias": bias, "unet.proj.alpha": torch.tensor(6.0)})
    np.testing.assert_allclose(array(layer.bias), before + SCALE * 6 / RANK * array(bias), atol=1e-6)


@pytest.mark.parametrize(("weight", "bias"), [("diff", "diff_b"), ("w_norm", "b_norm")])
def test_differences_are_added(tmp_path: Path, weight: str, bias: str) -> None:
    layer = nn.Linear(6, 4) if weight == "diff" else nn.LayerNorm(5)
    before = array(layer.weight), array(layer.bias)
    change = random(*layer.weight.shape), random(*layer.bias.shape)
    tensors = {f"lora_unet_proj.{weight}": change[0], f"lora_unet_proj.{bias}": change[1]}
    fuse(tmp_path, tensors, "unet", network_with("proj", layer))
    np.testing.assert_allclose(array(layer.weight), before[0] + SCALE * array(change[0]), atol=1e-6)
    np.testing.assert_allclose(array(layer.bias), before[1] + SCALE * array(change[1]), atol=1e-6)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_loha_multiplies_two_products_entry_by_entry(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    layer = nn.Conv2d(6, 4, 3) if kernel else nn.Linear(6, 4)
    before, columns = array(layer.weight), 6 * int(np.prod(kernel))
    a1, b1, a2, b2 = random(4, 2), random(2, columns), random(4, 2) + 1, random(2, columns) - 1
    names = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(3.0)}
    changed(tmp_path, layer, {f"lora_unet_proj.{name}": value for name, value in names.items()})
    change = ((array(a1) @ array(b1)) * (array(a2) @ array(b2))).reshape(before.shape)
    np.testing.assert_allclose(array(layer.weight), before + SCALE * 3 / 2 * change, atol=1e-5)


def test_loha_of_a_convolution_may_be_decomposed(tmp_path: Path) -> None:
    layer = nn.Conv2d(6, 4, 3)
    before = array(layer.weight)
    names = {f"hada_{kind}": random(*shape) for kind, shape in {
        "t1": (2, 2, 3, 3), "w1_a": (2, 4), "w1_b": (2, 6), "t2": (2, 2, 3, 3), "w2_a": (2, 4), "w2_b": (2, 6),
    }.items()}  # fmt: skip
    changed(tmp_path, layer, {f"lora_unet_proj.{name}": value for name, value in names.items()})
    one, other = (
        np.einsum("ijkl,ip,jr->prkl", *(array(names[f"hada_{kind}"]) for kind in (f"t{i}", f"w{i}_a", f"w{i}_b"))) for i in (1, 2)
    )
    np.testing.assert_allclose(array(layer.weight), before + SCALE * one * other, atol=1e-5)


@pytest.mark.parametrize("factored", [(), ("w1",), ("w2",), ("w1", "w2")])
def test_lokr_is_kroneckers_product(tmp_path: Path, factored: tuple[str, ...]) -> None:
    layer, parts, tensors = nn.Conv2d(6, 4, 3), {}, {"lora_unet_proj.alpha": torch.tensor(3.0)}
    before = array(layer.weight)
    for name, shape in (("w1", (2, 2)), ("w2", (2, 3, 3, 3))):
        if name in factored:
            a, b = random(shape[0], 2), random(2, int(np.prod(shape[1:])))
            tensors |= {f"lora_unet_proj.lokr_{name}_a": a, f"lora_unet_proj.lokr_{name}_b": b}
            parts[name] = (array(a) @ array(b)).reshape(shape)
        else:
            tensors[f"lora_unet_proj.lokr_{name}"] = random(*shape)
            parts[name] = array(random(*shape))
    changed(tmp_path, layer, tensors)
    change = np.kron(parts["w1"][:, :, None, None], parts["w2"])
    np.testing.assert_allclose(array(layer.weight), before + SCALE * (3 / 2 if factored else 1) * change, atol=1e-5)
