"""Sampling from Python: the pixels of `ptqd-run sample`, engines that stay open, steps one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import engines
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Schedule
from engines.cli import main
from engines.errors import UsageError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[3]


def command(bundle: TinyBundle, output: Path, *options: object) -> Path:
    """Run `ptqd-run sample` and return its folder."""
    arguments = ["sample", bundle.folder, "--seed", 5, "--output", output, *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return output


def pictures(folder: Path) -> list[np.ndarray]:
    files = json.loads((folder / "samples.json").read_text())["files"]
    return [np.asarray(Image.open(folder / file)) for file in files]


OPTIONS: list[tuple[dict[str, Any], list[object]]] = [
    ({}, []),
    ({"classes": [2, 0], "first": 30}, ["--classes", "2,0", "--first", 30]),
    ({"classes": "all", "batch_size": 2}, ["--classes", "all", "--batch-size", 2]),
    ({"precision": "w4a8", "correction": False}, ["--precision", "w4a8", "--correction", "off"]),
    ({"guidance": 3.0, "accept_guidance": True}, ["--guidance", 3, "--accept-guidance"]),
]


@pytest.mark.parametrize(("options", "arguments"), OPTIONS)
def test_pixels_are_those_that_the_command_writes(
    tiny: TinyBundle, tmp_path: Path, options: dict[str, Any], arguments: list[object]
) -> None:
    pixels = engines.open_bundle(tiny.folder).sample(num=5, seed=5, **options)
    assert (str(pixels.dtype), pixels.shape) == ("uint8", (5, 8, 8, 1))
    assert pixels.std(axis=(1, 2, 3)).min() > 1
    np.testing.assert_array_equal(pixels[..., 0], pictures(command(tiny, tmp_path / "out", "--num", 5, *arguments)))


def test_latents_are_the_states_that_the_command_archives(tiny_decoded: TinyBundle, tmp_path: Path) -> None:
    bundle = engines.open_bundle(tiny_decoded.folder)
    with np.load(command(tiny_decoded, tmp_path / "out", "--num", 3, "--format", "npz") / "samples.npz") as archive:
        np.testing.assert_array_equal(bundle.sample(3, seed=5, latents=True), archive["samples"])
        np.testing.assert_array_equal(bundle.sample(3, seed=5), np.moveaxis(archive["images"], 1, -1))


def test_colour_pictures_have_three_channels(tiny_unconditional: TinyBundle, tmp_path: Path) -> None:
    pixels = engines.open_bundle(str(tiny_unconditional.folder)).sample(num=2, seed=5)
    assert pixels.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(pixels, pictures(command(tiny_unconditional, tmp_path / "out", "--num", 2)))


def test_engines_open_once_and_serve_every_chain(tiny: TinyBundle, opened: list[str]) -> None:
    bundle = engines.open_bundle(tiny.folder)
    assert opened == []
    first = bundle.sample(num=2)
    assert opened == ["w4a8", "w8a8", "fp32"]
    np.testing.assert_array_equal(bundle.sample(num=2), first)
    bundle.sample(num=2, seed=2, precision="w8a8", correction=False, classes=[1])
    next(bundle.chain(num=2, precision="fp32"))
    assert opened == ["w4a8", "w8a8", "fp32"]
    bundle.sample(num=1, precision="fp32")
    assert opened == ["w4a8", "w8a8", "fp32", "fp32"], "another batch size"


def test_a_closed_bundle_samples_no_more(tiny: TinyBundle) -> None:
    with engines.open_bundle(tiny.folder) as bundle:
        bundle.sample(num=1)
    for use in (bundle.sample, bundle.chain):
        with pytest.raises(UsageError, match=r"(?s)The bundle was closed\..*open it again"):
            use()
    assert set(bundle.precisions) == {"fp32", "w4a8", "w8a8"}


WRONG: list[tuple[Callable[[engines.OpenBundle], object], str]] = [
    (lambda bundle: bundle.sample(num=0), r"(?s)number of samples.*1 or more"),
    (lambda bundle: bundle.sample(batch_size=0), r"(?s)batch size.*1 or more"),
    (lambda bundle: bundle.sample(first=-1), r"(?s)sample number.*found:    -1"),
    (lambda bundle: bundle.sample(classes=[]), "list of classes or prompts is empty"),
    (lambda bundle: bundle.chain(prompts=[]), "list of classes or prompts is empty"),
    (lambda bundle: bundle.sample(classes=[3]), r"(?s)class is out of range.*found:    3"),
    (lambda bundle: bundle.sample(prompts="a cat"), "takes no prompts"),
    (lambda bundle: bundle.chain(precision="w2a2"), "no such precision"),
    (lambda bundle: bundle.chain(schedule="long"), "no such schedule"),
    (lambda bundle: bundle.chain(guidance=2.0), "another guidance scale"),
]


@pytest.mark.parametrize(("use", "message"), WRONG)
def test_requests_that_do_not_fit_are_refused_before_an_engine_opens(
    tiny: TinyBundle, opened: list[str], use: Callable[[engines.OpenBundle], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        use(engines.open_bundle(tiny.folder))
    assert opened == []


def test_a_folder_without_a_bundle_and_an_unknown_runtime_are_refused_at_once(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        engines.open_bundle(tmp_path)
    with pytest.raises(UsageError, match=r"(?s)no such runtime\..*found:    onnx\n.*target or onnxruntime or "):
        engines.open_bundle(tiny.folder, runtime="onnx")  # type: ignore[arg-type]


def test_states_that_are_not_pictures_come_as_latents(tiny_latent: TinyBundle) -> None:
    bundle = engines.open_bundle(tiny_latent.folder)
    with pytest.raises(UsageError, match="use latents=True"):
        bundle.sample()
    assert bundle.sample(num=2, latents=True).shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match="use `state`"):
        next(bundle.chain()).preview()


# Steps


def test_steps_lead_to_the_samples(tiny: TinyBundle) -> None:
    bundle = engines.open_bundle(tiny.folder)
    steps = [*bundle.chain(num=3, seed=5, classes=[2])]
    assert [(step.index, step.steps, step.timestep, step.precision) for step in steps] == [
        (0, 4, 750.0, "w4a8"),
        (1, 4, 500.0, "w4a8"),
        (2, 4, 250.0, "w8a8"),
        (3, 4, 0.0, "fp32"),
    ]
    assert [step.is_last for step in steps] == [False, False, False, True]
    np.testing.assert_array_equal(steps[-1].state, bundle.sample(num=3, seed=5, classes=[2], latents=True))
    np.testing.assert_array_equal(steps[-1].preview(), bundle.sample(num=3, seed=5, classes=[2]))


def test_steps_tell_the_clean_samples_that_they_predict(tiny: TinyBundle) -> None:
    """x0 = (x - sqrt(1 - a) eps) / sqrt(a) of Song et al. 2020, equation 12, with the corrected eps of the reference network."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    stored = json.loads((tiny.folder / "schedules/default.json").read_text())["steps"]
    x, rows = NoiseSource(5, (1, 8, 8)).start(np.arange(2)), np.array([1, 1])
    for step in engines.open_bundle(tiny.folder).chain(num=2, seed=5, classes=[1]):
        network, correction = tiny.networks[step.precision], stored[step.index]["corrections"][step.precision]
        conditional, unconditional = network(x, step.timestep, rows), network(x, step.timestep, np.full(2, 3))
        eps = unconditional + 1.5 * (conditional - unconditional)
        eps = correction["gain"][0] * eps + correction["offset"][0] + correction["state_gain"][0] * x
        a = alpha_bar[int(step.timestep)]
        clean = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        assert step.clean is not None
        np.testing.assert_allclose(step.clean, clean, rtol=0, atol=1e-4 * abs(clean).max())
        if not step.is_last:
            drawn = 255 * np.clip((step.clean[:, 0] + 1) / 2, 0, 1)
            assert np.abs(step.preview()[..., 0] - drawn).max() <= 0.51
        x = step.state


def test_a_chain_can_be_stopped_early(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = OnnxRuntimeEngine.run
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda engine, feeds: calls.append(1) or run(engine, feeds))  # type: ignore[func-returns-value]
    for step in engines.open_bundle(tiny.folder).chain():
        if step.index == 1:
            break
    assert len(calls) == 2


def test_what_a_user_does_to_a_state_leaves_the_chain_alone(tiny: TinyBundle) -> None:
    bundle = engines.open_bundle(tiny.folder)
    for step in bundle.chain():
        last = step.state.copy()
        step.state[:] = 0
    np.testing.assert_array_equal(last, bundle.sample(num=1, latents=True))


def test_previews_of_latent_models_are_decoded(tiny_decoded: TinyBundle) -> None:
    step = next(engines.open_bundle(tiny_decoded.folder).chain(num=2))
    assert step.state.shape == (2, 4, 8, 8)
    assert (str(step.preview().dtype), step.preview().shape) == ("uint8", (2, 8, 8, 1))


def test_plms_predicts_no_clean_samples(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Bundle.open(tiny.folder).schedule()
    plms = plain.model_copy(update={"sampler": plain.sampler.model_copy(update={"name": "plms"})})
    monkeypatch.setattr(Bundle, "schedule", lambda *_: Schedule.model_validate(plms.model_dump()))
    step = next(engines.open_bundle(tiny.folder).chain())
    assert step.clean is None
    drawn = 255 * np.clip((step.state[:, 0] + 1) / 2, 0, 1)
    assert np.abs(step.preview()[..., 0] - drawn).max() <= 0.51


# Contents


def test_schedules_and_precisions_are_listed_with_their_settings(tiny: TinyBundle) -> None:
    bundle = engines.open_bundle(tiny.folder)
    assert bundle.schedules == {
        "default": engines.ScheduleInfo(
            "default", "ddim", 4, 1.0, 1.5, "signed", ("gain", "offset"), "schedule", "fixed", {"w4a8": 2, "w8a8": 1, "fp32": 1}, {}
        )
    }
    assert list(bundle.precisions) == ["fp32", "w4a8", "w8a8"]
    graph = "graphs/onnxruntime/w4a8.onnx"
    assert bundle.precisions["w4a8"] == engines.PrecisionInfo("w4a8", 4, 8, (tiny.folder / graph).stat().st_size, 1.0, 1.0, graph)
    assert bundle.layers == (), "a bundle without statistics"
    assert str(tiny.folder) in repr(bundle)


# Imports


def test_a_fresh_interpreter_samples_without_frameworks(tiny: TinyBundle) -> None:
    program = (
        "import sys, engines\n"
        "cheap = {'numpy', 'pydantic'}.isdisjoint(sys.modules)\n"
        "pixels = engines.open_bundle(sys.argv[1]).sample(num=2)\n"
        "loaded = {'torch', 'onnx', 'onnx_ir', 'diffusers', 'scipy', 'matplotlib', 'onnxruntime', 'ptqd_export'} & sys.modules.keys()\n"
        "print(cheap, pixels.shape, sorted(loaded))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny.folder], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("True (2, 8, 8, 1) ['onnxruntime']\n", "")


def test_public_names_exist() -> None:
    assert [name for name in engines.__all__ if getattr(engines, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        _ = engines.sample
