"""Every row of the table of transformers from its folder to latents and images: the chain is the one of diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
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
from engines.chain.step import ChainState, Move, advance, evaluate
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder
from engines.samplers import compile_sampler
from ptqd_export.commands.starter import starter_plan
from ptqd_export.graph.trace import check_module_parity, trace
from ptqd_export.models.load import load_model
from ptqd_export.plan import Plan, PlanFile
from tests.ptqd_export.models.tiny_transformers import BUILT, QUICK, TINY, USUAL, model_section, required_parts

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

Array = NDArray[Any]
NUM, SEED = 2, 5
ROWS = np.array([2, 0])
STEPS = 4
TRACED = ("flux2-klein", "qwen-image", "z-image")
"""Families with positions or masks of their own, whose graphs are quick tests though their builds are not."""

EMBEDDED = ("flux-dev", "flux2-dev")
"""Families that take guidance as an input."""

UNGUIDED = ("flux2-klein-distilled", "qwen-image")
"""Families that take no guidance."""

NOTED = {"qwen-image": ["guidance"], "z-image": ["sampler.guidance"]}
"""First words of what `init` says about the family."""


@cache
def _pipeline(name: str, model: Path) -> Any:
    import diffusers

    tiny = TINY[name]
    absent = dict.fromkeys(part for part in required_parts(tiny) if not (model / part).is_dir())
    pipeline = getattr(diffusers, tiny.pipeline).from_pretrained(model, **absent, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _of_pipeline(name: str, model: Path, start: Array, steps: int, guidance: float, output: str = "latent") -> Array:
    """Latents [N, C, h, w], or images [N, 3, H, W] in [0, 1], of diffusers' pipeline from our noise and embeddings."""
    pipeline = _pipeline(name, model)
    with np.load(model.parent / "conditions.npz") as archive:
        tables = {key: torch.from_numpy(value) for key, value in archive.items()}
    rows = {key: value[ROWS] for key, value in tables.items() if not key.startswith("null.")}
    nulls = {key.removeprefix("null."): value.expand(NUM, *value.shape) for key, value in tables.items() if key.startswith("null.")}
    state = STATES.get(TINY[name].pipeline, _Latents)(pipeline, start)
    height, width = (side * pipeline.vae_scale_factor * state.patch for side in start.shape[2:])
    found = pipeline(
        **_asked(name, rows, nulls, guidance), latents=state.given(torch.from_numpy(start)), height=height, width=width,
        num_inference_steps=steps, output_type=output, return_dict=False,
    )[0]  # fmt: skip
    return np.asarray(state.returned(found)) if output == "latent" else np.moveaxis(found, -1, 1)


class _Latents:
    """How a pipeline takes and returns the states [N, C, h, w]: as they are.

    Attributes:
        patch: latents of the first stage along each side of a state's element.
    """

    patch = 1

    def __init__(self, pipeline: Any, start: Array) -> None:
        self.pipeline, self.shape = pipeline, start.shape

    def given(self, states: Any) -> Any:
        return states

    def returned(self, found: Any) -> Any:
        return found


class _Packed(_Latents):
    """As tokens of 2x2 latents."""

    def given(self, states: Any) -> Any:
        return self.pipeline._pack_latents(states, *self.shape)

    def returned(self, found: Any) -> Any:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(found, self.shape[2] * factor, self.shape[3] * factor, factor)


class _PackedFrame(_Packed):
    """The same, returned as the one frame of a video."""

    def returned(self, found: Any) -> Any:
        return super().returned(found)[:, :, 0]


class _Patches(_Latents):
    """Given as they are, returned as tokens."""

    patch = 2

    def returned(self, found: Any) -> Any:
        return found.movedim(1, 2).reshape(self.shape)


class _Denormalized(_Latents):
    """Given as they are, returned as the latents that the first stage decodes."""

    patch = 2

    def returned(self, found: Any) -> Any:
        return self.pipeline.vae.bn(self.pipeline._patchify_latents(found))


STATES = {"FluxPipeline": _Packed, "QwenImagePipeline": _PackedFrame, "Flux2Pipeline": _Patches, "Flux2KleinPipeline": _Denormalized}


def _asked(name: str, rows: Mapping[str, Any], nulls: Mapping[str, Any], guidance: float) -> dict[str, Any]:
    """Return the pipeline's arguments for conditions, those of "no prompt", and our guidance scale."""
    if name == "z-image":
        captions = {"prompt_embeds": _unpadded(rows), "negative_prompt_embeds": _unpadded(nulls)}
        return {**captions, "guidance_scale": guidance - 1}
    given = {_argument(key): value for key, value in rows.items()}
    if name == "qwen-image":
        return given
    if name in EMBEDDED:
        return {**given, "guidance_scale": guidance}
    given |= {f"negative_{_argument(key)}": value for key, value in nulls.items()}
    if name.startswith("flux2-klein"):
        return {**given, "guidance_scale": guidance}
    given["negative_prompt"] = None
    if name == "auraflow":  # its network takes no mask, but its pipeline asks for one
        masks = {key.replace("embeds", "attention_mask"): value[:, :, 0] for key, value in given.items() if value is not None}
        return {**given, **masks, "guidance_scale": guidance}
    if name == "flux-schnell":  # its own guidance scale has no effect
        return {**given, "true_cfg_scale": guidance}
    options = {"use_resolution_binning": False} if TINY[name].masked else {}
    return {**given, **options, "guidance_scale": guidance}


def _unpadded(conditions: Mapping[str, Any]) -> list[Any]:
    """Return embeddings as a list of as many tokens as the mask keeps."""
    masks = conditions["encoder_attention_mask"].bool()
    return [row[mask] for row, mask in zip(conditions["encoder_hidden_states"], masks, strict=True)]


def _argument(key: str) -> str:
    """Return the pipeline's name of a condition."""
    return {
        "encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask",
        "encoder_hidden_states_mask": "prompt_embeds_mask", "pooled_projections": "pooled_prompt_embeds",
    }[key]  # fmt: skip


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
            return np.asarray(self.model.adapter(state, t, *conditions)).reshape(branches, *x.shape)


def _walk(denoiser: Any, name: str, model: Any, steps: int, guidance: float) -> tuple[Array, Array]:
    """Return the start and the end of the chain of full precision."""
    table = compile_sampler(USUAL[name][0], steps, 0.0, model.noise_schedule)
    noise = NoiseSource(SEED, model.sample_shape).start(np.arange(NUM))
    state = ChainState(np.float32(table.init_sigma) * noise)
    for i in range(table.steps):
        row = table.step(i)
        state = advance(state, evaluate(denoiser, state.x, row, ROWS), Move(i, row, "fp32", guidance), None)
    return noise, state.x


def _close(found: Array, expected: Array) -> None:
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


CASES = [(name, steps, guidance) for name in TINY for steps, guidance in ((4, 1.0), (4, 5.0), (20, 1.0 if name in UNGUIDED else 5.0))]


@pytest.mark.parametrize(("name", "steps", "guidance"), [case for case in CASES if case[0] not in UNGUIDED or case[2] == 1.0])
def test_adapter_walks_as_the_pipeline_does(name: str, steps: int, guidance: float, transformer_folder: Callable[[str], Path]) -> None:
    model = transformer_folder(name)
    network = _Torch(name, model.parent, guidance)
    start, end = _walk(network, name, network.model, steps, network.guidance)
    _close(end, _of_pipeline(name, model, start, steps, guidance))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BUILT])
class TestBuild:
    def test_full_precision_walks_as_the_pipeline_does(
        self, name: str, transformer_folder: Callable[[str], Path], transformer_build: Callable[..., Built]
    ) -> None:
        bundle = Bundle.open(transformer_build(name).folder)
        noise = NoiseSource(SEED, bundle.manifest.model.sample_shape)
        found = ChainChoice(precision="fp32", correction="off").open(bundle, NUM).sample(noise, np.arange(NUM), ROWS)
        start, guidance = noise.start(np.arange(NUM)), USUAL[name][2]
        _close(found, _of_pipeline(name, transformer_folder(name), start, STEPS, guidance))
        if bundle.manifest.model.decoder is not None:
            images = open_decoder(bundle, "target")(found)
            expected = _of_pipeline(name, transformer_folder(name), start, STEPS, guidance, "np")
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
        for precision in BUILT[name]:
            error = np.abs(_samples(transformer_build(name), tmp_path, precision) - exact).mean() / np.abs(exact).mean()
            assert 1e-4 < error < 0.3

    def test_guidance_is_an_input_or_a_second_branch(self, name: str, transformer_build: Callable[[str], Built]) -> None:
        bundle = Bundle.open(transformer_build(name).folder)
        embedded = name in EMBEDDED
        assert bundle.manifest.guidance == (1.0 if embedded else USUAL[name][2])
        with np.load(bundle.folder / "conditioning" / "default.npz") as arrays:
            assert ("guidance" in arrays.files) is embedded
            assert not embedded or arrays["guidance"].tolist() == [3.5] * 3


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
