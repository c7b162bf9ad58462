"""Every tensor of the published models has a place, and the mapped networks compute what the original ones do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError
from engines.samplers import NoiseSchedule, compile_sampler
from ptqd_export.models.base import Adapter, LoadedModel, ModelModules
from ptqd_export.models.compvis import latent_diffusion
from ptqd_export.models.load import fingerprint, load_model, model_files
from ptqd_export.models.tensors.checkpoint import read_tensors
from ptqd_export.plan import Plan, PlanFile
from tests.ptqd_export.models.compvis.published import (
    LAYOUT,
    SMALL,
    SMALL_CLASSES,
    config,
    layout,
    random_tensors,
    random_values,
    small,
    small_checkpoint,
    write_yaml,
)

GOLDEN = Path(__file__).parent / "golden.npz"
"""By model, `.out` of the U-Net and `.image` of the first stage for the inputs of `_run`: what the original classes (commit a506df5 of the
public repository) gave with the YAML of `small` and the weights of `random_tensors`, in their EMA scope where they have one."""

PARITY = 1e-5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compvis")
    return {name: small_checkpoint(name, folder / name) for name in SMALL}


def _load(path: Path) -> ModelModules:
    return latent_diffusion.load(path, latent_diffusion.declare(path))


def _load_tensors(
    tensors: Mapping[str, Tensor], described: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelModules:
    """As if they were read from a file."""
    (folder / "model.ckpt").touch()
    write_yaml(described, folder / "model.yaml")
    monkeypatch.setattr(latent_diffusion, "read_tensors", lambda _: tensors)
    return _load(folder / "model.ckpt")


def _shapes_alone(name: str) -> dict[str, Tensor]:
    """Tensors of a layout that take no memory; the two that are looked at have values."""
    tensors = {key: torch.empty(shape, device="meta") for key, shape in layout(name).items() if key != latent_diffusion.CUMULATIVE}
    return tensors | {key: torch.tensor(0.25) for key in tensors if key == latent_diffusion.SCALE}


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


def _run(networks: ModelModules, channels: int, classes: bool) -> tuple[Tensor, Tensor]:
    x, z = (torch.from_numpy(random_values(name, (2, channels, size, size))) for name, size in (("x", 16), ("z", 4)))
    labels = (torch.tensor([3, 10]),) if classes else ()
    assert networks.decoder is not None
    with torch.no_grad():
        return networks.adapter(x, torch.tensor([1.0, 961.0]), *labels), networks.decoder(z)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_the_original_modules(name: str, checkpoints: dict[str, Path]) -> None:
    declared = latent_diffusion.declare(checkpoints[name])
    found = _run(_load(checkpoints[name]), declared.sample_shape[0], bool(declared.inputs))
    with np.load(GOLDEN) as golden:
        for value, part in zip(found, ("out", "image"), strict=True):
            expected = golden[f"{name}.{part}"]
            assert expected.std() > 0.3
            assert np.abs(value.numpy() - expected).max() <= PARITY * np.abs(expected).max(), part


@pytest.mark.parametrize("name", LAYOUT)
def test_every_tensor_of_the_published_model_has_a_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = _shapes_alone(LAYOUT[name])
    networks = _load_tensors(tensors, config(name), tmp_path, monkeypatch)
    denoiser = [value for key, value in tensors.items() if key.startswith((latent_diffusion.UNET, latent_diffusion.CLASSES))]
    decoder = [
        value
        for key, value in tensors.items()
        if key.startswith(latent_diffusion.FIRST_STAGE) and not key.startswith(("first_stage_model.encoder.", "first_stage_model.quant_"))
    ]
    assert networks.decoder is not None
    assert len(denoiser) > 300
    assert _count(networks.adapter) == sum(value.numel() for value in denoiser)
    assert _count(networks.decoder) == sum(value.numel() for value in decoder)


MISSING = [
    ("cin256-v2", "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"),
    ("cin256-v2", "first_stage_model.encoder.conv_in.weight"),
    ("cin256-v2", "first_stage_model.quantize.embedding.weight"),
    ("cin256-v2", "cond_stage_model.embedding.weight"),
    ("lsun-bedrooms", "model_ema.diffusion_modelinput_blocks41qkvbias"),
    ("lsun-churches", "scale_factor"),
    ("lsun-churches", "model_ema.diffusion_modeloutput_blocks52out_layers3weight"),
]


@pytest.mark.parametrize(("name", "key"), MISSING)
def test_a_missing_tensor_is_named(name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = _shapes_alone(f"small-{name}")
    del tensors[key]
    with pytest.raises(PtqdError, match=rf"lacks tensors(.|\n)*no {key}\n"):
        _load_tensors(tensors, small(name), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "key", ["scale_factor", "model.diffusion_model.input_blocks.99.0.weight", "model_ema.more", "first_stage_model.other", "strange"]
)
def test_an_unused_tensor_is_named(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = _shapes_alone("small-lsun-bedrooms") | {key: torch.zeros(1)}
    with pytest.raises(PtqdError, match=rf"model described by its configuration does not have(.|\n)*{key}\n"):
        _load_tensors(tensors, small("lsun-bedrooms"), tmp_path, monkeypatch)


@pytest.mark.parametrize("shape", [(32, 4, 3, 3), (64, 3, 3, 3), (32, 3, 1, 1), (32, 3)])
def test_a_tensor_of_another_shape_is_named(shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = _shapes_alone("small-cin256-v2")
    assert tensors[key].shape == (32, 3, 3, 3)
    with pytest.raises(PtqdError, match=rf"shape of a tensor in the checkpoint differs(.|\n)*{key}"):
        _load_tensors(tensors | {key: torch.empty(shape)}, small("cin256-v2"), tmp_path, monkeypatch)


def test_what_only_training_needs_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(1), "logvar": torch.zeros(1000)}
    assert _load_tensors(_shapes_alone("small-cin256-v2") | training, small("cin256-v2"), tmp_path, monkeypatch).decoder is not None


def test_without_averaged_weights_where_the_configuration_keeps_them_nothing_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {key: value for key, value in _shapes_alone("small-lsun-bedrooms").items() if not key.startswith("model_ema.")}
    with pytest.raises(PtqdError, match="use_ema: False"):
        _load_tensors(tensors, small("lsun-bedrooms"), tmp_path, monkeypatch)
    described = small("lsun-bedrooms")
    described["model"]["params"]["use_ema"] = False
    assert _load_tensors(tensors, described, tmp_path, monkeypatch).decoder is not None


def test_averaged_weights_are_used_as_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, described = dict(random_tensors(layout("small-lsun-bedrooms"), small("lsun-bedrooms"))), small("lsun-bedrooms")
    averaged = _load_tensors(tensors, described, tmp_path, monkeypatch).adapter.network.get_parameter("conv_in.weight")
    assert torch.equal(averaged, tensors["model_ema.diffusion_modelinput_blocks00weight"])
    described["model"]["params"]["use_ema"] = False
    plain = _load_tensors(tensors, described, tmp_path, monkeypatch).adapter.network.get_parameter("conv_in.weight")
    assert torch.equal(plain, tensors["model.diffusion_model.input_blocks.0.0.weight"])


def test_weights_are_taken_over_without_a_copy_and_half_precision_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dict(random_tensors(layout("small-cin256-v2"), small("cin256-v2")))
    key = "model.diffusion_model.out.2.weight"
    tensors[key] = tensors[key].half()
    network = _load_tensors(tensors, small("cin256-v2"), tmp_path, monkeypatch).adapter.network
    weight = network.get_parameter("unet.conv_in.weight")
    assert weight.data_ptr() == tensors["model.diffusion_model.input_blocks.0.0.weight"].data_ptr()
    assert torch.equal(network.get_parameter("unet.conv_out.weight"), tensors[key].float())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_checkpoint_of_another_noise_schedule_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    described = small("lsun-churches")
    described["model"]["params"]["linear_end"] = 0.0195
    write_yaml(described, tmp_path / "model.yaml")
    (tmp_path / "model.ckpt").symlink_to(checkpoints["lsun-churches"])
    with pytest.raises(PtqdError, match="noise schedule differs from the one in its configuration"):
        _load(tmp_path / "model.ckpt")


@pytest.mark.parametrize(("steps", "eta"), [(20, 0.0), (200, 1.0), (250, 1.0)])
def test_the_sampler_is_the_original_one(steps: int, eta: float, checkpoints: dict[str, Path]) -> None:
    """The original's formulas, in float64: alphas of every timestep 1 + k T / steps, the last step going to that of timestep 0."""
    table = compile_sampler("ddim", steps, eta, latent_diffusion.declare(checkpoints["cin256-v2"]).noise_schedule)
    alpha_bar = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
    t = np.arange(0, 1000, 1000 // steps) + 1
    a, a_prev = alpha_bar[t], np.concatenate([alpha_bar[:1], alpha_bar[t[:-1]]])
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    x_coeff = np.sqrt(a_prev / a)
    out_coeff = np.sqrt(1 - a_prev - sigma**2) - np.sqrt(a_prev / a) * np.sqrt(1 - a)
    rows = [table.step(step) for step in range(steps)][::-1]
    for found, expected in (("timestep", t), ("x_coeff", x_coeff), ("out_coeff", out_coeff), ("sigma", sigma)):
        np.testing.assert_allclose([getattr(row, found) for row in rows], expected, rtol=1e-9, atol=1e-12)


def test_safetensors_hold_the_same_model(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = read_tensors(checkpoints["cin256-v2"])
    save_file(tensors, tmp_path / "model.safetensors")
    write_yaml(small("cin256-v2"), tmp_path / "model.yaml")
    found = _load(tmp_path / "model.safetensors").adapter.state_dict()
    expected = _load(checkpoints["cin256-v2"]).adapter.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# As the model of a plan


def _plan_file(path: Path, **model: Any) -> PlanFile:
    plan = {"model": {"path": path.name, **model}, "sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"], "output": "bundle"}
    return PlanFile(Plan.model_validate(plan | {"target": {"name": "onnxruntime"}}), path.parent, path.parent / "bundle")


def test_classes_are_conditions_and_the_last_one_is_none(checkpoints: dict[str, Path]) -> None:
    model = load_model(_plan_file(checkpoints["cin256-v2"]))
    assert model.conditioning is not None
    assert model.conditioning.rows == model.null_class == SMALL_CLASSES - 1
    assert model.adapter.conditions == ("class_labels",)
    assert model.sample_shape == (3, 16, 16)
    sample, timestep, labels = model.example_inputs(2)
    with torch.no_grad():
        out = model.adapter(sample[:1].repeat(2, 1, 1, 1), timestep[:1].repeat(2), labels)
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_unconditional_models_take_no_classes(checkpoints: dict[str, Path]) -> None:
    assert load_model(_plan_file(checkpoints["lsun-churches"])).conditioning is None
    with pytest.raises(UsageError, match="no classes"):
        load_model(_plan_file(checkpoints["lsun-churches"], null_class=3))


def _fingerprint(checkpoint: Path) -> str:
    model = LoadedModel("test", Adapter(nn.Identity(), ()), (1,), None, None, NoiseSchedule(), files=model_files(checkpoint))
    return fingerprint(model, None)


def test_the_fingerprint_is_of_the_checkpoint_and_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    (tmp_path / "model.yaml").write_text("a: 1")
    seen = {_fingerprint(tmp_path / "model.ckpt")}
    (tmp_path / "model.yaml").write_text("a: 2")
    seen.add(_fingerprint(tmp_path / "model.ckpt"))
    (tmp_path / "model.ckpt").write_bytes(b"others")
    seen.add(_fingerprint(tmp_path / "model.ckpt"))
    (tmp_path / "stranger.txt").touch()
    seen.add(_fingerprint(tmp_path / "model.ckpt"))
    assert len(seen) == 3


def test_the_configuration_is_found_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    torch.save({"model.diffusion_model.out.2.bias": torch.ones(3)}, checkpoint)
    with pytest.raises(UsageError, match=r"0 \*\.yaml files beside"):
        latent_diffusion.find_config(checkpoint)
    (tmp_path / "config.yaml").touch()
    assert latent_diffusion.find_config(checkpoint).name == "config.yaml"
    (tmp_path / "other.yaml").touch()
    with pytest.raises(UsageError, match=r"2 \*\.yaml files beside"):
        latent_diffusion.find_config(checkpoint)
    (tmp_path / "model.yaml").touch()
    assert latent_diffusion.find_config(checkpoint).name == "model.yaml"
