"""LoRAs in the weights of bundles that are built already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

import engines
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.sharing_copy import sharing_copy
from engines.apps.evaluate.scores import LEAST_SAMPLES
from engines.backends.choice import RuntimeName, open_backend
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import UsageError
from engines.host.files import sha256
from engines.networks.chain_choice import ChainChoice
from engines.networks.engine_bank import EngineBank, load_conditioning
from engines.networks.kept_engines import KeptEngines
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_use import LoraUse, lora_uses
from engines.networks.lora.requantized import least_scales, requantized
from ptqd_export.report.evidence import Evidence
from ptqd_export.stages.precisions.activations import load_observations
from tests.engines.apps.evaluate.conftest import TinyExtractor, weights
from tests.engines.ptqd_run import record, run, sample, states
from tests.ptqd_export.models.lora.loras import SCALE, small_unet
from tests.ptqd_export.models.tiny_transformers import USUAL
from tests.ptqd_export.models.whole_pipelines import open_pipeline, walked

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

RANK = 3
INT4 = onnx.TensorProto.INT4
NUM = LEAST_SAMPLES
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def changes(network: nn.Module, seed: int, only: str = "") -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors, up and down, for the layers of a network whose names contain a text."""
    random, found = torch.Generator().manual_seed(seed), {}
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and only in name:
            out, *rest = layer.weight.shape
            up, down = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=random), torch.randn(RANK, *rest, generator=random)
            found[name] = (0.2 * up, 0.2 * down)
    return found


def write(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "unet.") -> Path:
    """Write factors with the keys of diffusers and PEFT."""
    ends = ((up, down, f"{prefix}{name}") for name, (up, down) in factors.items())
    save_file({f"{key}.{end}.weight": one for up, down, key in ends for end, one in (("lora_B", up), ("lora_A", down))}, path)
    return path


@torch.no_grad()
def merge(network: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> nn.Module:
    """Add the changes to the weights of a network."""
    for name, (up, down) in factors.items():
        weight = network.get_parameter(f"{name}.weight")
        changed = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        network.get_submodule(name).register_parameter("weight", nn.Parameter(changed))
    return network


@pytest.fixture(scope="module")
def lora(cross_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = cross_build.context.model.adapter.network
    return write(tmp_path_factory.mktemp("lora") / "lora.safetensors", changes(network, 1))


def stored(path: Path) -> dict[str, Array]:
    """The constants of a graph, as `onnx` reads them; packed integers as bytes."""
    found = onnx.load(path).graph.initializer
    return {one.name: np.frombuffer(one.raw_data, np.uint8) if one.data_type == INT4 else numpy_helper.to_array(one) for one in found}


# Weights


@pytest.mark.parametrize(("name", "precisions"), [("cross_build", 4), ("class_build", 5)])
def test_a_scale_of_0_gives_every_constant_as_the_build_wrote_it(
    name: str, precisions: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Names, layouts, packed integers, scales and biases of every form that ONNX Runtime's placement has."""
    built: Built = request.getfixturevalue(name)
    path = write(tmp_path / "lora.safetensors", changes(built.context.model.adapter.network, 1))
    bundle = Bundle.open(built.folder)
    changed, seen = ChangedWeights.of(bundle, [LoraUse(path, 0.0)]), 0
    for precision in bundle.manifest.precisions:
        graph = bundle.verified_graph(precision)
        before = stored(graph)
        for constant, value in changed.constants(precision, graph).items():
            np.testing.assert_array_equal(value, before[constant], err_msg=constant)
            seen += constant.endswith((".weight", ".weight.T", ".weight.int"))
    assert len(bundle.manifest.precisions) == precisions
    assert seen == precisions * len(changed.changes.layers)


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4a16"])
def test_integers_are_those_of_a_build_with_the_lora_in_it(cross_build: Built, precision: str) -> None:
    """By the largest magnitude, which needs no activations, scales and integers are those of the build's own quantizer."""
    settings, network = QuantizationSettings(weight_scale="max", activation_scale="max"), cross_build.context.model.adapter.network
    merged, seen = merge(sharing_copy(network), changes(network, 1), SCALE), load_observations(cross_build.stage("observe"))
    quantizer = Quantizer(merged, cross_build.network.layers, seen, cross_build.context.placement, settings)
    before, after = cross_build.quantize_with(settings, precision), quantizer.quantize(Precision.parse(precision))
    for old, new in zip(before, after, strict=True):
        weights = [one.get_parameter(f"{old.layer.name}.weight").detach().numpy() for one in (network, merged)]
        has_floor = old.rule.bias == "int32" and old.bias is not None and old.input is not None
        floor = least_scales(old.bias.double().numpy(), old.input.scale) if has_floor else None  # type: ignore[union-attr]
        found = requantized(weights[0], old.weight.scale.numpy()[:, None], old.weight.bits, weights[1], floor)
        np.testing.assert_array_equal(found.scale[:, 0], new.weight.scale.numpy(), err_msg=old.layer.name)
        np.testing.assert_array_equal(found.integers, new.integers.numpy(), err_msg=old.layer.name)
        assert not np.array_equal(found.integers, old.integers.numpy())


def test_scales_of_groups_keep_their_ratios() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 64), dtype=np.float32)
    largest = np.abs(weight.reshape(4, 2, 32)).max(axis=2)
    found = requantized(weight, (0.8 * largest / 7).astype(np.float32), 4, 3 * weight)
    np.testing.assert_allclose(found.scale, 3 * 0.8 * largest / 7, rtol=1e-6)
    rounded = np.clip(np.round(3 * weight.reshape(4, 2, 32) / found.scale[:, :, None]), -8, 7)
    np.testing.assert_array_equal(found.integers, rounded.reshape(4, 64))


@pytest.mark.parametrize("precision", ["fp16", "w8a8", "w4a16"])
def test_graphs_of_tensorrt_take_loras_on_onnx_runtime(cross_trt_build: Built, lora: Path, precision: str) -> None:
    bundle = Bundle.open(cross_trt_build.folder)
    graph = bundle.verified_graph(precision)
    before, plain = stored(graph), ChangedWeights.of(bundle, [LoraUse(lora, 0.0)]).constants(precision, graph)
    assert plain
    for name, value in plain.items():
        assert value.dtype == before[name].dtype
        apart = np.abs(_unpacked(value, name) - _unpacked(before[name], name))
        assert apart.max() <= (1 if name.endswith(".int") else 2e-3 * np.abs(before[name]).max()), name


def _unpacked(value: Array, name: str) -> Array:
    """Values in float64; of integers, both halves of packed ones, each as a signed number."""
    if value.dtype == np.uint8 and name.endswith(".int"):
        return np.stack([(half ^ 8).astype(float) - 8 for half in (value & 15, value >> 4)])
    return value.astype(float)


def test_a_precision_of_8_bit_floats_is_refused_by_name(cross_trt_build: Built, lora: Path) -> None:
    bundle = Bundle.open(cross_trt_build.folder)
    with pytest.raises(UsageError, match=r"precision fp8 cannot take a LoRA(.|\n)*stored as e4m3"):
        ChangedWeights.of(bundle, [LoraUse(lora)]).constants("fp8", bundle.verified_graph("fp8"))


def test_a_runtime_that_gives_graphs_no_other_weights_is_refused(cross_trt_build: Built, lora: Path) -> None:
    bundle = Bundle.open(cross_trt_build.folder)

    class Fixed:
        def open(self, graph: Path, rows: int) -> Any:  # noqa: ARG002 (the protocol's)
            raise AssertionError("not opened")

    with pytest.raises(UsageError, match=r"runtime cannot take a LoRA(.|\n)*TensorRT"):
        EngineBank(bundle, 1.0, backend=Fixed(), changed=ChangedWeights.of(bundle, [LoraUse(lora)]))["w8a8"]


# Networks


def _out(bundle: Bundle, precision: str, changed: ChangedWeights | None, backend: Any = None) -> Array:
    network = EngineBank(bundle, 1.0, batch=2, backend=backend, changed=changed)[precision]
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)
    return np.asarray(network(x, 500.0, np.array([0, 1]))[0])


def test_networks_compute_with_the_changed_weights(cross_build: Built, lora: Path) -> None:
    """Against torch in float, and integers as near to it as without the LoRA; both runtimes, whole and in pieces."""
    bundle, model = Bundle.open(cross_build.folder), cross_build.context.model
    network = merge(sharing_copy(model.adapter.network), changes(model.adapter.network, 1), 0.3)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *model.sample_shape), dtype=np.float32))
    assert model.conditioning is not None
    rows = [torch.from_numpy(model.conditioning.tables[name][:2]) for name in model.adapter.conditions]
    with torch.no_grad():
        expected = model.with_network(network).adapter(x, torch.full((2,), 500.0), *rows).numpy()
    changed = ChangedWeights.of(bundle, [LoraUse(lora, 0.3)])
    plain = _out(bundle, "fp32", None)
    assert np.abs(plain - expected).max() > 0.1
    runtimes: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    for runtime in runtimes:
        backend = open_backend(bundle, runtime, 1)
        np.testing.assert_allclose(_out(bundle, "fp32", changed, backend), expected, atol=1e-4)
        for precision in ("w8a8", "w4a8", "w4a16"):
            noise, before = (
                np.square(q - e).mean() / np.square(e).mean()
                for q, e in ((_out(bundle, precision, changed, backend), expected), (_out(bundle, precision, None, backend), plain))
            )
            assert noise < 4 * before, (runtime, precision)


def test_a_bundle_in_a_pipeline_takes_loras(cross_build: Built, lora: Path) -> None:
    from ptqd_export.diffusers.denoiser import PtqdDenoiser

    bundle, rows = Bundle.open(cross_build.folder), np.array([0, 1])
    conditioning, timestep = load_conditioning(bundle), bundle.schedule().steps[0].timestep
    assert conditioning is not None
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)
    expected = EngineBank(bundle, 1.0, batch=2, changed=ChangedWeights.of(bundle, [LoraUse(lora, 0.3)]))["w8a8"](x, timestep, rows)[0]
    denoiser = PtqdDenoiser.from_bundle(cross_build.folder, precision="w8a8", loras={lora: 0.3})
    table = torch.from_numpy(conditioning.tables["encoder_hidden_states"][rows])
    np.testing.assert_allclose(denoiser(torch.from_numpy(x), timestep, table).sample.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["flux-dev", pytest.param("sd3", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_chains_are_those_of_the_pipeline_with_the_loras(
    name: str, transformer_folder: Callable[[str], Path], transformer_build: Callable[[str], Built], tmp_path: Path
) -> None:
    model, rows = transformer_folder(name), np.array([2, 0])
    own = open_pipeline(name, model).transformer
    one, two = changes(own, 1), changes(own, 2, "attn")
    paths = [write(tmp_path / f"{i}.safetensors", each, "transformer.") for i, each in enumerate((one, two))]
    ends = []
    with engines.open_bundle(transformer_build(name).folder) as bundle:
        begin = NoiseSource(5, Bundle.open(bundle.folder).manifest.model.sample_shape).start(np.arange(2))
        sampling = partial(bundle.sample, 2, seed=5, classes=rows.tolist(), precision="fp32", latents=True)
        for scales in ((0.4,), (1.0,), (0.7, -0.5)):
            pipeline = open_pipeline(name, model)
            for factors, scale in zip((one, two), scales, strict=False):
                merge(pipeline.transformer, factors, scale)
            with torch.no_grad():
                expected = walked(pipeline, name, torch.from_numpy(begin), rows, 4, USUAL[name][2]).numpy()
            ends.append(sampling(loras=dict(zip(paths, scales, strict=False))))
            assert np.abs(ends[-1] - expected).max() < 1e-3 * np.abs(expected).max()
        ends.append(sampling())
    assert min(np.abs(one - other).max() for i, one in enumerate(ends) for other in ends[:i]) > 0.05


# Open bundles


def test_files_of_loras_count_by_what_they_contain(cross_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in another folder, a file that was replaced, and the same content elsewhere."""
    bundle, name = Bundle.open(cross_build.folder), "style.safetensors"
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, factors in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        write(folder / name, changes(cross_build.context.model.adapter.network, factors, "attn"))
    kept, rows = KeptEngines(bundle), np.array([0, 1])
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)

    def out(path: Path) -> Array:
        chain = ChainChoice(precision="w8a8", loras=(LoraUse(path),)).open(bundle, 2, kept=kept)
        return np.asarray(chain.denoisers["w8a8"](x, chain.timesteps["w8a8"][0], rows)[0])

    found = []
    for folder in folders:
        monkeypatch.chdir(folder)
        found.append(out(Path(name)))
    assert np.abs(found[0] - found[1]).max() > 1e-3
    weights = kept.last_changed
    assert weights is not None
    assert not weights._found  # the engines hold copies
    np.testing.assert_array_equal(out(folders[1] / name), found[1])
    assert kept.last_changed is weights
    (folders[1] / name).write_bytes((folders[0] / name).read_bytes())
    np.testing.assert_array_equal(out(Path(name)), found[0])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_engines_hold_copies_of_changed_weights(cross_build: Built, lora: Path, runtime: RuntimeName) -> None:
    """So that the arrays may be dropped."""
    bundle = Bundle.open(cross_build.folder)
    changed = ChangedWeights.of(bundle, [LoraUse(lora)])
    network = EngineBank(bundle, 1.0, batch=2, backend=open_backend(bundle, runtime, 1), changed=changed)["w8a8"]
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)
    before = np.array(network(x, 500.0, np.array([0, 1]))[0])
    for constant in changed._found["w8a8"].values():
        constant[...] = 0
    np.testing.assert_array_equal(network(x, 500.0, np.array([0, 1]))[0], before)


# The command line


def test_samples_and_their_record_name_the_loras(cross_build: Built, lora: Path, tmp_path: Path) -> None:
    options = ("--format", "npz", "--precision", "w8a8")
    plain = states(cross_build, tmp_path / "plain", *options, num=2)  # type: ignore[arg-type]
    found = states(cross_build, tmp_path / "lora", *options, "--lora", f"{lora}:0.5", num=2)  # type: ignore[arg-type]
    with engines.open_bundle(cross_build.folder) as bundle:
        same = bundle.sample(2, seed=5, precision="w8a8", loras={lora: 0.5}, latents=True)
    np.testing.assert_array_equal(found, same)
    assert np.abs(found - plain).max() > 0.01
    (one,) = record(tmp_path / "lora")["loras"]
    layers = len(changes(cross_build.context.model.adapter.network, 1))
    digest = sha256(lora)
    assert one == {"file": lora.name, "sha256": digest, "scale": 0.5, "layers": layers, "ignored": {}}
    assert record(tmp_path / "plain")["loras"] == []


def test_layers_of_text_encoders_are_told_and_left_out(cross_build: Built, tmp_path: Path) -> None:
    pair = changes(cross_build.context.model.adapter.network, 1, QUERY)[QUERY]
    key = f"lora_unet_{QUERY.replace('.', '_')}"
    tensors = {f"{key}.lora_{end}.weight": one for end, one in zip(("up", "down"), pair, strict=True)}
    text = {f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    save_file(tensors | text, tmp_path / "both.safetensors")
    result = sample(cross_build, tmp_path / "out", "--format", "npz", "--lora", tmp_path / "both.safetensors", num=1)  # type: ignore[arg-type]
    assert "both.safetensors: 1 layer of text_encoder ignored; a bundle's text encoders take no LoRA" in result.output
    assert record(tmp_path / "out")["loras"][0]["ignored"] == {"text_encoder": 1}
    save_file(text, tmp_path / "text.safetensors")
    result = sample(cross_build, tmp_path / "none", "--format", "npz", "--lora", tmp_path / "text.safetensors", num=1)  # type: ignore[arg-type]
    assert result.exit_code == 2
    assert "changes no layer of the network" in result.output


UP, DOWN = torch.ones(16, 2), torch.ones(2, 16)
PAIR = {"lora_B.weight": UP, "lora_A.weight": DOWN}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"unet.other.{end}": one for end, one in PAIR.items()}, "does not fit the model"),
        ({f"unet.{QUERY}.{end}": one[:, :1] for end, one in PAIR.items()}, "factors that do not fit each other"),
        ({f"unet.{QUERY}.lora_B.weight": UP, f"unet.{QUERY}.lora_A.weight": DOWN[:, :8]}, "a change of a weight (16, 16)"),
        ({f"unet.{QUERY}.lora_B.weight": UP}, "down too"),
        ({f"unet.{QUERY}.{end}": one * np.inf for end, one in PAIR.items()}, "not finite"),
        ({f"unet.{QUERY}.{end}": one for end, one in (PAIR | {"lora_magnitude_vector": UP}).items()}, "kind of LoRA: DoRA"),
        ({f"lora_unet_{QUERY}.lokr_w1": UP, f"lora_unet_{QUERY}.lokr_w2": UP}, "kind of LoRA: LoKr"),
        ({f"lora_unet_{QUERY}.hada_w1_a": UP}, "kind of LoRA: LoHa"),
        ({f"{QUERY}.weight": UP @ DOWN}, "This is not a LoRA"),
        ({f"{prefix}{QUERY}.{end}": one for prefix in ("", "unet.") for end, one in PAIR.items()}, "under two names"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    cross_build: Built, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "lora.safetensors")
    result = sample(cross_build, tmp_path / "out", "--format", "npz", "--lora", tmp_path / "lora.safetensors", num=1)  # type: ignore[arg-type]
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["lora.safetensors:strong", "lora.safetensors:nan", "lora.safetensors:"])
def test_a_scale_that_is_no_number_is_refused(cross_build: Built, tmp_path: Path, text: str) -> None:
    result = run("sample", cross_build.folder, "--num", 1, "--seed", 1, "--output", tmp_path / "out", "--lora", text)
    assert result.exit_code == 2
    assert "The scale of a LoRA" in result.output


def test_a_path_may_hold_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:b").touch()
    assert LoraUse.parse(f"{tmp_path}/a:b") == LoraUse(tmp_path / "a:b")
    assert LoraUse.parse(f"{tmp_path}/a:b:0.5") == LoraUse(tmp_path / "a:b", 0.5)


def test_python_takes_files_with_and_without_scales() -> None:
    assert lora_uses(["a", Path("b")]) == lora_uses({"a": 1.0, "b": 1}) == (LoraUse(Path("a")), LoraUse(Path("b")))
    assert (lora_uses(None), lora_uses("a")) == ((), (LoraUse(Path("a")),))
    for given in (3, [3], {"a": "strong"}, {"a": None}):
        with pytest.raises(UsageError, match="not given as files"):
            lora_uses(given)  # type: ignore[arg-type]


def test_a_comparison_stands_beside_the_one_without_the_lora(cross_build: Built, lora: Path, tmp_path: Path) -> None:
    arguments = ("compare", cross_build.folder, "--num", 2, "--steps", 2, "--precisions", "w8a8")
    plain = run(*arguments, "--json", tmp_path / "plain.json")
    found = run(*arguments, "--json", tmp_path / "lora.json", "--lora", f"{lora}:0.5")
    assert (plain.exit_code, found.exit_code) == (0, 0), found.output
    assert "w8a8 without" in found.output
    assert "w8a8: the corrections" in found.output
    figures, alone = (json.loads((tmp_path / name).read_text()) for name in ("lora.json", "plain.json"))
    assert figures["loras"] == ["lora.safetensors:0.5"]
    assert figures["without_lora"] == alone
    assert figures["precisions"]["w8a8"]["mean_snr_db"] != alone["precisions"]["w8a8"]["mean_snr_db"]
    assert figures["precisions"]["w8a8"]["mean_snr_db"] > alone["precisions"]["w8a8"]["mean_snr_db"] - 6


def test_figures_and_times_are_those_with_the_lora(cross_build: Built, lora: Path, tmp_path: Path) -> None:
    """An evaluation's PSNR is that of samples with the LoRA, whose full precision has it too; a report refuses its figures."""
    used = ("--lora", f"{lora}:0.5")
    figures, times = (tmp_path / f"{name}.json" for name in ("figures", "times"))
    features = TinyExtractor(W=weights((128, 4), 1 / 8)).save(tmp_path / "features.onnx", ["features"], ("N", 2, 8, 8))
    asked = ("--num", NUM, "--seed", 5, "--precision", "w8a8", "--features", features)
    evaluated = run("evaluate", cross_build.folder, *asked, *used, "--json", figures)
    timed = run("bench", cross_build.folder, "--batch-size", 1, "--rounds", 1, "--steps", 2, *used, "--json", times)
    assert (evaluated.exit_code, timed.exit_code) == (0, 0), evaluated.output + timed.output
    assert "with lora.safetensors:0.5" in evaluated.output
    assert "with lora.safetensors:0.5" in timed.output
    assert json.loads(times.read_text())["loras"] == ["lora.safetensors:0.5"]
    with engines.open_bundle(cross_build.folder) as bundle:
        exact, noisy = (
            bundle.sample(NUM, seed=5, precision=precision, loras={lora: 0.5}, latents=True).clip(-1, 1).astype(np.float64)
            for precision in ("fp32", "w8a8")
        )
    psnr = 10 * np.log10(2**2 / ((exact - noisy) ** 2).mean())
    assert json.loads(figures.read_text())["figures"]["pooled_psnr"]["quantized"]["mean"] == pytest.approx(psnr, abs=0.05)
    with pytest.raises(UsageError, match="made with a LoRA"):
        Evidence.load(Bundle.open(cross_build.folder), [figures])


def test_original_names_of_sdxl_are_found_by_the_names_of_layers() -> None:
    from engines.networks.lora.layer_aliases import aliases

    layers = [name for name, module in small_unet().named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    found = aliases(layers)
    assert set(found.values()) == set(layers)
    assert found["input_blocks_4_1_transformer_blocks_0_attn1_to_q"] == "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert found["output_blocks_2_0_skip_connection"] == "up_blocks.0.resnets.2.conv_shortcut"
    assert found["label_emb_0_2"] == "add_embedding.linear_2"
