"""Learned rounding of whole networks: it pays, it never harms, and an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.preparation.rotation import rotate_inputs
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import PLACEMENTS, LayerOverrides
from calib.quantizers.rules.precision import Precision
from calib.rounding import reconstruction
from calib.rounding.adapted_weight import AdaptedWeight
from calib.rounding.adaround import SoftRounding
from calib.rounding.block_fit import BlockFitSettings, BlockTask
from calib.rounding.learned_block import load_block
from calib.rounding.module_calls import Inputs
from calib.rounding.reconstruction import CalibrationRows, ReconstructionSettings, Unit, block_files, reconstruct
from calib.rounding.soft_weight import Phase

CPU = torch.device("cpu")
STATES = 96
ROUNDING = Phase("rounding", SoftRounding)
ADAPTERS = Phase("adapters", partial(AdaptedWeight, rank=4))


class Residual(nn.Module):
    """Two layers of one source, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.out(torch.tanh(self.a(x)) * torch.sigmoid(self.b(x)))
        return out


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.last = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.last(h)
        return out


def _layers() -> tuple[Layer, ...]:
    names = [f"blocks.{i}.{name}" for i in range(2) for name in ("a", "b", "out")]
    inner = [
        Layer(name, "Gemm", "inner", (16, 16), 256, source=name.replace(".b", ".a") if name.endswith(".b") else name) for name in names
    ]
    return (Layer("first", "Gemm", "boundary", (16, 8), 128, "first"), *inner, Layer("last", "Gemm", "boundary", (8, 16), 128, "last"))


def _forward(network: nn.Module, inputs: Inputs) -> object:
    return network(*inputs)


@dataclass(frozen=True)
class Case:
    network: Network
    x: Tensor
    nearest: list[QuantizedLayer]

    def learn(
        self,
        folder: Path,
        unit: Unit = "block",
        memory_bytes: int = 10**8,
        on_work: Callable[[int, int], None] = lambda *_step: None,
        dtype: torch.dtype = torch.float32,
        phases: tuple[Phase, ...] = (ROUNDING,),
        iterations: int = 40,
    ) -> list[QuantizedLayer]:
        folder.mkdir(exist_ok=True)
        fit = BlockFitSettings(iterations=iterations, batch_size=16, activation_scales=True, device=CPU)
        rows = CalibrationRows(_forward, (self.x[:STATES],), STATES)
        settings = ReconstructionSettings(unit, phases, fit, dtype, memory_bytes)
        return reconstruct(self.network, self.nearest, rows, settings, folder, on_work)

    def error(self, layers: list[QuantizedLayer]) -> float:
        """Of the output, on samples that nothing was learned from."""
        x = self.x[STATES:]
        with torch.no_grad():
            return float((fake_quantized(self.network, layers)(x) - self.network(x)).square().mean())


def _case(precision: str, low_rank: int | None = None, *, rotated: bool = False, target: str = "onnxruntime") -> Case:
    torch.manual_seed(0)
    network = Network().eval()
    if rotated:
        rotate_inputs(network, {layer.name: 16 for layer in _layers() if layer.role == "inner"})
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(STATES + 200, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    layers = _layers()
    with observe_activations(network, [layer.source for layer in layers], [layer.name for layer in layers], 1) as seen, torch.no_grad():
        network(x[:STATES])
    settings = QuantizationSettings(
        "max", "max", LayerOverrides(low_rank=low_rank)
    )  # the search for scales would leave little to learn in so small a network
    quantizer = Quantizer(network, layers, seen, PLACEMENTS[target], settings)
    return Case(network, x, quantizer.quantize(Precision.parse(precision)))


@pytest.fixture(scope="module")
def case() -> Case:
    return _case("w3a8")


@pytest.fixture(scope="module")
def learned(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[QuantizedLayer]]:
    folder = tmp_path_factory.mktemp("learned")
    return folder, case.learn(folder)


def _same(first: list[QuantizedLayer], second: list[QuantizedLayer]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a.integers, b.integers) and (a.input, a.output) == (b.input, b.output) for a, b in pairs)


def test_output_comes_nearer_to_full_precision(case: Case, learned: tuple[Path, list[QuantizedLayer]]) -> None:
    assert case.error(learned[1]) < 0.6 * case.error(case.nearest)


def test_layers_alone_learn_too(case: Case, tmp_path: Path) -> None:
    layers = case.learn(tmp_path, unit="layer")
    assert case.error(layers) < 0.8 * case.error(case.nearest)
    assert len(block_files(tmp_path)) == 6


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_the_rest_is_learned_beside_branches(tmp_path: Path, unit: Unit) -> None:
    """A finished layer adds its branch once, whether it is computed or its stored output is taken."""
    branched = _case("w3a8", low_rank=3)
    layers = branched.learn(tmp_path, unit)
    assert all(after.branch is before.branch for before, after in zip(branched.nearest, layers, strict=True))
    assert sum(layer.branch is not None for layer in layers) == 6
    assert branched.error(layers) < 0.8 * branched.error(branched.nearest)


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_layers_of_rotated_inputs_are_learned(tmp_path: Path, unit: Unit) -> None:
    """Where a block is a layer, its stored inputs are those before the rotation, which the layer then does itself."""
    case = _case("w3a8", rotated=True)
    assert case.error(case.learn(tmp_path, unit)) < 0.8 * case.error(case.nearest)


def test_weights_are_within_one_step_of_the_nearest_and_boundaries_untouched(
    case: Case, learned: tuple[Path, list[QuantizedLayer]]
) -> None:
    for before, after in zip(case.nearest, learned[1], strict=True):
        assert after.layer is before.layer
        assert after.weight is before.weight
        moved = (after.integers - before.integers).abs().max()
        assert moved == (1 if before.layer.role == "inner" else 0)
        if before.layer.role != "inner":
            assert after is before


def test_layers_of_one_source_keep_sharing_a_quantizer_in_either_unit(
    case: Case, learned: tuple[Path, list[QuantizedLayer]], tmp_path: Path
) -> None:
    for layers in (learned[1], case.learn(tmp_path, unit="layer")):
        inputs = {layer.layer.name: layer.input for layer in layers}
        assert inputs["blocks.0.a"] == inputs["blocks.0.b"]
        assert inputs["blocks.0.a"] != next(layer.input for layer in case.nearest if layer.layer.name == "blocks.0.a")


def test_record_is_of_the_oracle_and_no_block_is_worse_than_nearest(case: Case, learned: tuple[Path, list[QuantizedLayer]]) -> None:
    folder, layers = learned
    nearest = {layer.layer.name: layer for layer in case.nearest}
    records = [load_block(path, nearest)[0] for path in block_files(folder)]
    assert [record.name for record in records] == ["blocks.0", "blocks.1"]
    x = case.x[:STATES][7::8]
    done = {layer.layer.name: layer for layer in layers}
    for i, record in enumerate(records):
        assert record.kept == ("rounding",)
        assert record.learned_error < record.nearest_error
        with torch.no_grad():
            quantized = fake_quantized(case.network, [layer if name.startswith("last") else done[name] for name, layer in nearest.items()])
            reference, found = case.network.first(x), quantized.get_submodule("first")(x)
            for block in range(i + 1):
                reference, found = case.network.blocks[block](reference), quantized.get_submodule(f"blocks.{block}")(found)
        assert record.learned_error == pytest.approx(float((reference - found).square().mean()), rel=1e-4)


def test_a_block_that_learned_badly_stays_as_it_was(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worst(task: BlockTask, *_others: object) -> BlockTask:
        layers = {name: replace(layer, integers=torch.zeros_like(layer.integers)) for name, layer in task.layers.items()}
        return replace(task, layers=layers)

    monkeypatch.setattr(reconstruction, "fit", worst)
    assert _same(case.learn(tmp_path), case.nearest)
    records = [load_block(path, {layer.layer.name: layer for layer in case.nearest})[0] for path in block_files(tmp_path)]
    assert [record.kept for record in records] == [(), ()]


def test_interrupted_run_goes_on_to_the_same_bits(case: Case, learned: tuple[Path, list[QuantizedLayer]], tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:  # in the second of two blocks
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.learn(tmp_path, on_work=interrupt)
    (first,) = block_files(tmp_path)
    written = first.stat().st_mtime_ns
    told: list[tuple[int, int]] = []
    assert _same(case.learn(tmp_path, on_work=lambda *step: told.append(step)), learned[1])
    assert first.stat().st_mtime_ns == written
    half = 40 + 6  # optimizer steps, and batches of 16 of the 96 states
    assert told == [(done, 2 * half) for done in range(half + 1, 2 * half + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block-0000.npz", "block-0001.npz"]


def test_files_give_the_bits_that_memory_gives(case: Case, learned: tuple[Path, list[QuantizedLayer]], tmp_path: Path) -> None:
    assert _same(case.learn(tmp_path, memory_bytes=0), learned[1])
    record, _ = load_block(block_files(tmp_path)[0], {layer.layer.name: layer for layer in case.nearest})
    assert (record.bytes_in_memory, record.bytes_in_files) == (0, 2 * STATES * 16 * 4)


def test_network_is_left_as_it_was(case: Case, learned: tuple[Path, list[QuantizedLayer]]) -> None:
    torch.manual_seed(0)
    untouched = Network().state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in case.network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.network.modules())
    assert learned[1]


@pytest.mark.parametrize("precision", ["w2a16", "w4a4"])
def test_other_precisions_learn(precision: str, tmp_path: Path) -> None:
    case = _case(precision)
    assert case.error(case.learn(tmp_path)) < 0.8 * case.error(case.nearest)


@pytest.mark.parametrize(("precision", "target"), [("w4a4", "onnxruntime"), ("w3a16", "onnxruntime"), ("nvfp4", "tensorrt")])
def test_adapters_bring_the_output_nearer_in_integers_and_in_floats(precision: str, target: str, tmp_path: Path) -> None:
    case = _case(precision, target=target)
    layers = case.learn(tmp_path, phases=(ADAPTERS,))
    assert case.error(layers) < 0.9 * case.error(case.nearest)
    for before, after in zip(case.nearest, layers, strict=True):
        assert after.weight is before.weight
        assert after.integers.dtype == before.integers.dtype
        assert not torch.equal(after.integers.float(), before.integers.float()) or before.layer.role != "inner"


def test_rounding_goes_on_from_the_merged_weights(case: Case, tmp_path: Path) -> None:
    both = case.learn(tmp_path, phases=(ADAPTERS, ROUNDING), iterations=150)
    named = {layer.layer.name: layer for layer in case.nearest}
    assert [load_block(path, named)[0].kept for path in block_files(tmp_path)] == [("adapters", "rounding")] * 2
    adapted = case.learn(tmp_path / "adapted", phases=(ADAPTERS,), iterations=150)
    assert case.error(both) < case.error(adapted) < case.error(case.nearest)
    for before, after in zip(adapted[1:4], both[1:4], strict=True):  # the first block, whose adapters are those of the other run
        assert (after.integers - before.integers).abs().max() == 1


def test_products_may_be_computed_in_bfloat16(case: Case, tmp_path: Path) -> None:
    layers = case.learn(tmp_path, dtype=torch.bfloat16)
    assert case.error(layers) < 0.8 * case.error(case.nearest)


@pytest.mark.parametrize(("states", "branches", "held_out"), [(10, 1, [7]), (17, 2, [7, 15, 24, 32]), (3, 1, [2]), (1, 1, [0])])
def test_states_are_held_out_in_all_their_branches(states: int, branches: int, held_out: list[int]) -> None:
    chosen, held = CalibrationRows(_forward, (torch.zeros(states * branches),), states).split()
    assert held.tolist() == held_out
    expected = [0] if states == 1 else np.setdiff1d(np.arange(states * branches), held_out).tolist()
    assert chosen.tolist() == expected
