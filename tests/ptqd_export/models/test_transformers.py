"""Every row of the table of transformers from its folder to latents and images: the chain is the one of diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import is_guided
from engines.chain.noise import NoiseSource
from engines.chain.norm_guidance import NormGuidance
from engines.chain.step import ChainState, Move, advance, evaluate
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder
from engines.samplers import SAMPLERS, compile_sampler
from ptqd_export.commands.starter import starter_plan
from ptqd_export.graph.trace import check_module_parity, trace
from ptqd_export.models.load import load_model
from ptqd_export.plan import Plan, PlanFile
from tests.ptqd_export.models.tiny_transformers import PRECISIONS, QUICK, TINY, USUAL, model_section
from tests.ptqd_export.models.whole_pipelines import EMBEDDED, walked_by_pipeline

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Array = NDArray[Any]
NUM, SEED = 2, 5
ROWS = np.array([2, 0])
STEPS = 4
TRACED = ("chroma", "flux2-klein", "qwen-image", "z-image")
"""Families with positions or masks of their own, whose graphs are quick tests though their builds are not."""

UNGUIDED = ("flux2-klein-distilled",)
"""Families that take no guidance."""

NOTED = {"sd3": ["a"], "z-image": ["sampler.guidance"]}
"""First words of what `init` says about the family."""


class _Torch:
    """A denoiser that calls the model's adapter in torch."""

    def __init__(self, name: str, folder: Path, guidance: float) -> None:
        plan = Plan.model_validate(
            {"model": model_section(name), "sampler": {"name": USUAL[name][0], "steps": STEPS, "guidance": guidance},
             "precisions": ["w8a8"], "target": {"name": "onnxruntime"}, "output": "unused"}
        )  # fmt: skip
        self.model = load_model(PlanFile(plan, folder, folder / "unused"))
        self.guidance = 1.0 if self.model.embeds_guidance else guidance

    def __call__(self, x: Array, timestep: float, rows: Array) -> Array:
        assert self.model.conditioning is not None
        guided = is_guided(self.guidance)
        feeds, branches = self.model.conditioning.feeds(rows, guided=guided), 2 if guided else 1
        conditions = [torch.from_numpy(np.ascontiguousarray(feeds[key])) for key in self.model.adapter.conditions]
        state, t = torch.from_numpy(np.concatenate([x] * branches)), torch.full((branches * len(x),), timestep)
        with torch.no_grad():
            out = np.asarray(self.model.adapter(state, t, *conditions)).reshape(branches, *x.shape)
        combine = NormGuidance.at(self.guidance, self.model.guidance_patch)
        return out if combine is None else combine(out)


def _walk(denoiser: Any, name: str, model: Any, steps: int, guidance: float) -> tuple[Array, NoiseSource]:
    """Return the end of the chain of full precision, and its noise."""
    table = compile_sampler(USUAL[name][0], steps, SAMPLERS[USUAL[name][0]].eta, model.noise_schedule)
    noise, samples = NoiseSource(SEED, model.sample_shape), np.arange(NUM)
    state = ChainState(np.float32(table.init_sigma) * noise.start(samples))
    for i in range(table.steps):
        row = table.step(i)
        z = noise.step(i, samples) if row.sigma > 0 else None
        state = advance(state, evaluate(denoiser, state.x, row, ROWS), Move(i, row, "fp32", guidance, sigma=row.sigma), z)
    return state.x, noise


def _close(found: Array, expected: Array) -> None:
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


CASES = [
    *((name, steps, guidance) for name in TINY for steps, guidance in ((4, 1.0), (4, 5.0), (20, 1.0 if name in UNGUIDED else 5.0))),
    ("sana-sprint", 1, 4.5),
    ("sana-sprint", 2, 4.5),
]


@pytest.mark.parametrize(("name", "steps", "guidance"), [case for case in CASES if case[0] not in UNGUIDED or case[2] == 1.0])
def test_adapter_walks_as_the_pipeline_does(name: str, steps: int, guidance: float, transformer_folder: Callable[[str], Path]) -> None:
    model = transformer_folder(name)
    network = _Torch(name, model.parent, guidance)
    end, noise = _walk(network, name, network.model, steps, network.guidance)
    _close(end, walked_by_pipeline(name, model, noise, ROWS, steps, guidance))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TINY])
class TestBuild:
    def test_full_precision_walks_as_the_pipeline_does(
        self, name: str, transformer_folder: Callable[[str], Path], transformer_build: Callable[..., Built]
    ) -> None:
        bundle = Bundle.open(transformer_build(name).folder)
        noise = NoiseSource(SEED, bundle.manifest.model.sample_shape)
        found = ChainChoice(precision="fp32", correction="off").open(bundle, NUM).sample(noise, np.arange(NUM), ROWS)
        guidance = USUAL[name][2]
        _close(found, walked_by_pipeline(name, transformer_folder(name), noise, ROWS, STEPS, guidance))
        if bundle.manifest.model.decoder is not None:
            images = open_decoder(bundle, "target")(found)
            expected = walked_by_pipeline(name, transformer_folder(name), noise, ROWS, STEPS, guidance, output_type="np")
            assert expected.std() > 0.02
            np.testing.assert_allclose((images / 2 + 0.5).clip(0, 1), expected, atol=1e-3)

    def test_graph_takes_any_batch(self, name: str, transformer_build: Callable[[str], Built]) -> None:
        built = transformer_build(name)
        model = built.context.model
        for batch in (1, 3, 7):
            inputs = dict(zip(("sample", "timestep", *model.adapter.conditions), model.example_inputs(batch), strict=True))
            assert check_module_parity(model.adapter, inputs, built.stage("trace") / "fp32.onnx") < 1e-5

    def test_quantized_chains_are_near_the_exact_one(self, name: str, transformer_build: Callable[[str], Built], tmp_path: Path) -> None:
        exact = _samples(transformer_build(name), tmp_path, "fp32")
        assert exact.shape == (NUM, *Bundle.open(transformer_build(name).folder).manifest.model.sample_shape)
        for precision in PRECISIONS:
            error = np.abs(_samples(transformer_build(name), tmp_path, precision) - exact).mean() / np.abs(exact).mean()
            assert 1e-4 < error < 0.3

    def test_guidance_is_an_input_or_a_second_branch(self, name: str, transformer_build: Callable[[str], Built]) -> None:
        bundle = Bundle.open(transformer_build(name).folder)
        embedded = name in EMBEDDED
        assert bundle.manifest.guidance == (1.0 if embedded else USUAL[name][2])
        with np.load(bundle.folder / "conditioning" / "default.npz") as arrays:
            assert ("guidance" in arrays.files) is embedded
            assert not embedded or arrays["guidance"].tolist() == [USUAL[name][2]] * 3


@pytest.mark.parametrize("name", TRACED)
def test_graph_of_own_positions_takes_any_batch(name: str, transformer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = _Torch(name, transformer_folder(name).parent, USUAL[name][2]).model
    ir.save(trace(model), tmp_path / "graph.onnx")
    for batch in (1, 3, 7):
        inputs = dict(zip(("sample", "timestep", *model.adapter.conditions), model.example_inputs(batch), strict=True))
        assert check_module_parity(model.adapter, inputs, tmp_path / "graph.onnx") < 1e-5


def _samples(built: Built, folder: Path, precision: str) -> Array:
    """Latents of a corrected chain in one precision."""
    rows, chain = tuple(ROWS.tolist()), ChainChoice(precision=precision)
    request = SampleRequest(built.folder, folder / precision, NUM, SEED, classes=rows, format="npz", chain=chain)
    with np.load(sample_bundle(request).output / "samples.npz") as arrays:
        return np.asarray(arrays["samples"])


@pytest.mark.parametrize("name", TINY)
def test_init_writes_what_the_pipeline_does(name: str, transformer_folder: Callable[[str], Path]) -> None:
    plan = starter_plan(transformer_folder(name), "onnxruntime", transformer_folder(name).parent)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.guidance) == USUAL[name]
    *known, note = plan.comments
    assert [each.split()[0] for each in known] == NOTED.get(name, [])
    assert note.startswith(
        "name a file as model.conditions before you build: an .npz with encoder_hidden_states: float32 [rows, tokens, 12]"
    )
    assert ("null." in note) is (USUAL[name][2] > 1 and name not in EMBEDDED)
