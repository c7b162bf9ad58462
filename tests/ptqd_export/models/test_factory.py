"""Networks of the user's own: the page's example from its function to samples, and everything that a function can get wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import PtqdError, UsageError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.factory import load_factory
from ptqd_export.models.load import fingerprint
from ptqd_export.plan import load_plan
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from ptqd_export.plan import PlanFile

PAGE = Path(__file__).parents[3] / "docs" / "models.md"

Write = Callable[[str], str]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> PlanFile:
    """The page's module and plan, in a folder of their own."""
    folder = tmp_path_factory.mktemp("factory")
    (module,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (plan,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (folder / "denoiser.py").write_text(module)
    (folder / "plan.json").write_text(plan)
    return load_plan(folder / "plan.json")


def test_example_of_the_page_is_built_and_sampled(example: PlanFile, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    run_build(example)
    assert sample_bundle(SampleRequest(example.output_path, tmp_path, 2, 1, classes=(3, 7))).record.precision_steps == {"w8a8": 3}
    model = load_factory("denoiser:trained", example.folder)
    noise, numbers, rows = NoiseSource(1, (1, 8, 8)), np.arange(2), np.array([3, 7])
    chain = ChainChoice(precision="fp32", correction="off").open(Bundle.open(example.output_path), 2)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(3)
    x = torch.from_numpy(noise.start(numbers))
    for step, t in enumerate(scheduler.timesteps):
        c, u = (model.adapter(x, t.float().expand(2), torch.as_tensor(labels)) for labels in (rows, [10, 10]))
        z = torch.from_numpy(noise.step(step, numbers))
        x = scheduler.step(u + 1.5 * (c - u), t, x, eta=1.0, variance_noise=z).prev_sample
    np.testing.assert_allclose(chain.sample(noise, numbers, rows), x.numpy(), atol=1e-3)


def test_starter_plan_names_the_factory(example: PlanFile) -> None:
    plan = starter_plan(Path("denoiser:trained"), "onnxruntime", example.folder)
    assert (plan.model.factory, plan.model.path, plan.output) == ("denoiser:trained", None, "build/trained")
    assert plan.sampler.guidance == 1.5
    assert json.loads(plan.resolved_json())["model"]["factory"] == "denoiser:trained"


def test_classes_without_a_null_class_are_all_real(tmp_path: Path, write: Write) -> None:
    """Ten labels are ten rows; guidance needs to know which one means "no class"."""
    name = write("return model(network=Labelled(), inputs=(class_input(10),))")
    plan = starter_plan(name, "onnxruntime", tmp_path)
    assert plan.sampler.guidance == 1.0
    assert "does not say which of its 10 labels" in plan.comments[0]
    model = load_factory(name, tmp_path)
    assert (model.null_class, model.conditioning and model.conditioning.rows) == (None, 10)
    named = load_factory(name, tmp_path, null_class=9)
    assert (named.null_class, named.conditioning and named.conditioning.rows) == (9, 9)


MODULE = """
from pathlib import Path
import torch
from torch import nn
from ptqd_export.models.factory import FactoryModel, class_input

class Net(nn.Module):
    def forward(self, sample, timestep):
        return sample * timestep[:, None, None, None]

class Labelled(nn.Module):
    def forward(self, sample, timestep, label):
        return sample * label[:, None, None, None]

class Upscale(nn.Module):
    def forward(self, states):
        return states.repeat_interleave(2, -1).repeat_interleave(2, -2)

class Flat(nn.Module):
    def forward(self, states):
        return states.flatten(1)

def model(**changes):
    return FactoryModel(**{"network": Net(), "sample_shape": (3, 4, 4), "noise_schedule": {}} | changes)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a module with a function `make`; the factory's name."""
    name = re.sub(r"\W", "_", tmp_path.name)  # a name of its own: modules are imported once

    def write(body: str) -> str:
        (tmp_path / f"made_{name}.py").write_text(f"{MODULE}\ndef make():\n    {body}\n")
        return f"made_{name}:make"

    return write


def _load(name: str, folder: Path) -> LoadedModel:
    return load_factory(name, folder)


def test_decoder_and_files_are_taken(write: Write, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    name = write("return model(decoder=Upscale(), files=(Path('weights'),))")
    model = _load(name, tmp_path)
    assert model.decoder is not None
    assert model.decoder(torch.zeros(2, 3, 4, 4)).shape == (2, 3, 8, 8)
    assert [path.name for path in model.files] == [f"{name.partition(':')[0]}.py", "weights"]
    first = fingerprint(model, None)
    (tmp_path / "weights").write_bytes(b"2")
    assert fingerprint(model, None) != first


def test_files_below_a_declared_folder_count(write: Write, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "weights").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    model = _load(write("return model(files=(Path('linked'),))"), tmp_path)
    first = fingerprint(model, None)
    (tmp_path / "store" / "weights").write_bytes(b"2")
    assert fingerprint(model, None) != first


def test_helper_modules_in_the_folder_count(write: Write, tmp_path: Path) -> None:
    name = re.sub(r"\W", "_", f"helper_{tmp_path.name}")
    helper, bystander = tmp_path / f"{name}.py", tmp_path / "bystander.py"
    for path in (helper, bystander):
        path.write_text("CHANNELS = 3\n")
    model = _load(write(f"import {name}; return model(sample_shape=({name}.CHANNELS, 4, 4))"), tmp_path)
    assert helper in model.files
    first = fingerprint(model, None)
    bystander.write_text("CHANNELS = 4\n")
    assert fingerprint(model, None) == first
    helper.write_text("CHANNELS = 2 + 1\n")
    assert fingerprint(model, None) != first


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return model(files=(Path('none'),))", r"A file that the factory declares is missing.*make: .*none"),
        ("return 3", r"returned an object of the wrong type.*made_\w+:make: int.*FactoryModel"),
        (
            "return model(network=Upscale())",
            r"does not accept the declared inputs.*TypeError.*network\(sample float32 \[2, 3, 4, 4\], timestep",
        ),
        ("return model(inputs=(class_input(4),))", r"does not accept the declared inputs.*class_labels int64 \[2\]\)"),
        (
            "return model(sample_shape=(3, 4))",
            r"does not return an output of the declared shape.*float32 \[2, 2, 3, 4\].*float32 \[2, 3, 4\], shaped like the state",
        ),
        ("return model(decoder=Flat())", r"decoder does not return images.*float32 \[2, 48\]"),
        ("return model(decoder=Net())", r"decoder does not accept the states.*TypeError.*decoder\(float32 \[2, 3, 4, 4\]\)"),
        ("return model(noise_schedule={'beta_schedule': 'steep'})", r"invalid beta_schedule.*'steep'"),
    ],
)
def test_what_a_factory_gets_wrong_is_told(write: Write, tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        _load(write(body), tmp_path)


def test_factory_that_raises(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PtqdError, match=r"(?s)The factory failed.*FileNotFoundError.*weights.bin") as caught:
        _load(write("open('weights.bin')"), tmp_path)
    assert not isinstance(caught.value, UsageError)


def test_factory_with_damaged_weights(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PtqdError, match=r"(?s)contain NaN or infinity.*:make, the network: w, 2 of 2 values"):
        _load(write("net = Net(); net.w = nn.Parameter(torch.full((2,), torch.nan)); return model(network=net)"), tmp_path)


def test_module_or_function_that_is_not_there(write: Write, tmp_path: Path) -> None:
    module = write("return model()").partition(":")[0]
    with pytest.raises(UsageError, match=rf"(?s)has no such factory.*did you mean \"{module}:make\""):
        _load(f"{module}:mak", tmp_path)
    with pytest.raises(UsageError, match=r"(?s)module cannot be imported.*No module named 'nowhere_at_all'"):
        _load("nowhere_at_all:make", tmp_path)


def test_python_path_is_left_as_it_was(write: Write, tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    _load(write("return model()"), tmp_path)
    assert sys.path == before
