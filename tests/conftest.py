"""A tiny bundle made without torch: a two-layer network, with a reference implementation in numpy and float64."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.bundle.contract import sealed
from engines.bundle.manifest import (
    MANIFEST,
    ConditioningRecord,
    FileRecord,
    InputRecord,
    Manifest,
    ModelRecord,
    PrecisionRecord,
    TargetRecord,
    write_manifest,
)
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.cluster.session import LOCAL, Cluster, joined
from engines.host.files import sha256
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from tests.emulated_device.emulated_device import EmulatedDevice

SIZE = 8
CLASSES = 3
HIDDEN = 4
STEPS = 4
PRECISIONS = {"fp32": (32, 32), "w4a8": (4, 8), "w8a8": (8, 8)}
NOISE_SCHEDULE = NoiseSchedule(clip_sample=False)
CHOSEN = ("w4a8", "w4a8", "w8a8", "fp32")

MIXTURE = np.array([0.5, -1.0, 0.25, 2.0], dtype=np.float32)

Array = NDArray[Any]


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A cluster of two CPUs, shared by all tests that need one because starting it takes longer than the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.cluster.session.cores", lambda: 2)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with joined(Cluster(LOCAL)) as module:
            yield module


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> EmulatedDevice:
    """A GPU with TensorRT-RTX, on host memory."""
    device = EmulatedDevice(tmp_path_factory.mktemp("engines"))
    device.install(monkeypatch)
    return device


@dataclass(frozen=True, eq=False)
class TinyNetwork:
    """`0.9 x + conv(tanh(conv(x) + class vector + t/1000 * time vector))`."""

    first: Array
    embedding: Array
    time: Array
    second: Array

    @classmethod
    def random(cls, channels: int) -> TinyNetwork:
        rng = np.random.default_rng(7)
        shapes = ((HIDDEN, channels, 3, 3), (CLASSES + 1, HIDDEN), (1, HIDDEN), (channels, HIDDEN, 3, 3))
        first, embedding, time, second = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
        return cls(first / 3, embedding, time, second / 6)

    def rounded(self, levels: int) -> TinyNetwork:
        """Return the network with weights rounded to `levels` levels on either side of zero."""
        first, second = (np.round(w / abs(w).max() * levels) / levels * abs(w).max() for w in (self.first, self.second))
        return replace(self, first=first.astype(np.float32), second=second.astype(np.float32))

    def __call__(self, x: Array, timestep: float, classes: Array) -> Array:
        vector = self.embedding[classes] + timestep / 1000 * self.time
        return 0.9 * x + _conv(np.tanh(_conv(x, self.first) + vector[:, :, None, None]), self.second)

    def graph(self, *, conditional: bool) -> onnx.ModelProto:
        channels = self.second.shape[0]
        sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N", channels, SIZE, SIZE])
        timestep = helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["N"])
        labels = helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["N"])
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", channels, SIZE, SIZE])
        null = np.full(1, CLASSES, dtype=np.int64)
        constants = {
            "first": self.first, "embedding": self.embedding, "time": self.time / np.float32(1000), "second": self.second,
            "one": np.array([1]), "plane": np.array([2, 3]), "share": np.float32(0.9), "null": null,
        }  # fmt: skip
        nodes = [
            helper.make_node("Gather", ["embedding", "class_labels" if conditional else "null"], ["class_vector"]),
            helper.make_node("Unsqueeze", ["timestep", "one"], ["column"]),
            helper.make_node("Mul", ["column", "time"], ["time_vector"]),
            helper.make_node("Add", ["class_vector", "time_vector"], ["vector"]),
            helper.make_node("Unsqueeze", ["vector", "plane"], ["bias"]),
            helper.make_node("Conv", ["sample", "first"], ["h1"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["h1", "bias"], ["h2"]),
            helper.make_node("Tanh", ["h2"], ["h3"]),
            helper.make_node("Conv", ["h3", "second"], ["h4"], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["sample", "share"], ["skip"]),
            helper.make_node("Add", ["h4", "skip"], ["out"]),
        ]
        inputs = [sample, timestep, labels] if conditional else [sample, timestep]
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "tiny", inputs, [out], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@dataclass(frozen=True)
class TinyBundle:
    """A bundle on disk, and its networks by precision."""

    folder: Path
    networks: dict[str, TinyNetwork]

    def manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return content

    def edit(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Change the content of a file without updating the manifest."""
        path = self.folder / name
        path.write_bytes(change(path.read_bytes()))

    def edit_json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file in place; an edited manifest gets a correct digest."""
        content = json.loads((self.folder / name).read_text())
        change(content)
        (self.folder / name).write_text(json.dumps(sealed(content) if name == MANIFEST else content))

    def rehash(self, name: str) -> None:
        """Update the manifest's record of a file."""
        record = _file_record(self.folder / name).model_dump()
        self.edit_json("manifest.json", lambda manifest: manifest["files"].update({name: record}))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A class-conditional, guided bundle with grayscale samples. Tests must not modify it."""
    return build_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def own_tiny(tiny: TinyBundle, tmp_path: Path) -> TinyBundle:
    """A copy of `tiny` that a test may damage."""
    return replace(tiny, folder=Path(shutil.copytree(tiny.folder, tmp_path / "bundle")))


@pytest.fixture
def tiny_latent(tmp_path: Path) -> TinyBundle:
    """A class-conditional bundle with samples of four channels."""
    return build_tiny_bundle(tmp_path / "latent", channels=4)


@pytest.fixture(scope="session")
def tiny_decoded(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A bundle like `tiny_latent` with a decoder: `tanh` of a mixture of the channels. Tests must not modify it."""
    bundle = build_tiny_bundle(tmp_path_factory.mktemp("decoded") / "bundle", channels=4)
    onnx.save(_decoder(), bundle.folder / "decoder.onnx")
    record = {"file": "decoder.onnx", "image_shape": [1, SIZE, SIZE], "batch": 4}
    bundle.edit_json("manifest.json", lambda manifest: manifest["model"].update(decoder=record))
    bundle.rehash("decoder.onnx")
    return bundle


@pytest.fixture
def tiny_unconditional(tmp_path: Path) -> TinyBundle:
    """An unconditional, unguided bundle with colour samples."""
    return build_tiny_bundle(tmp_path / "unconditional", channels=3, conditional=False)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT reach this process and its children even if a shell started the tests in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def build_tiny_bundle(folder: Path, *, channels: int = 1, conditional: bool = True) -> TinyBundle:
    """Write a bundle whose precisions differ in the rounding of their weights; its corrections are made up, not fitted."""
    fp32 = TinyNetwork.random(channels)
    networks = {"fp32": fp32, "w4a8": fp32.rounded(7), "w8a8": fp32.rounded(127)}
    guidance = 1.5 if conditional else 1.0
    (folder / "graphs" / "onnxruntime").mkdir(parents=True)
    (folder / "schedules").mkdir()
    for name, network in networks.items():
        onnx.save(network.graph(conditional=conditional), folder / _graph(name))
    table = compile_sampler("ddim", STEPS, 1.0, NOISE_SCHEDULE)
    (folder / "schedules/default.json").write_text(_schedule(table, channels, guidance).model_dump_json())
    write_manifest(folder, _manifest(folder, channels, guidance, conditional=conditional))
    return TinyBundle(folder, networks)


def _decoder() -> onnx.ModelProto:
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N", 4, SIZE, SIZE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    nodes = [helper.make_node("Conv", ["sample", "mixture"], ["mixed"]), helper.make_node("Tanh", ["mixed"], ["out"])]
    graph = helper.make_graph(nodes, "decoder", [sample], [out], [numpy_helper.from_array(MIXTURE.reshape(1, 4, 1, 1), "mixture")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _conv(x: Array, weight: Array) -> Array:
    """Cross-correlation with 3x3 kernels and zero padding."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    out: Array = np.einsum("knchw,ock->nohw", np.stack(shifted), weight.reshape(*weight.shape[:2], 9).astype(np.float64))
    return out


def _graph(precision: str) -> str:
    return f"graphs/onnxruntime/{precision}.onnx"


def _file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256(path), bytes=path.stat().st_size)


def _schedule(table: SamplerTable, channels: int, guidance: float) -> Schedule:
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=guidance),
        correction=CorrectionRecord(mode="signed", variance="schedule"),
        policy="fixed",
        init_sigma=table.init_sigma,
        steps=tuple(_step(table, i, channels) for i in range(STEPS)),
    )


def _step(table: SamplerTable, i: int, channels: int) -> Step:
    row = table.step(i)
    corrections = {
        name: Correction(
            gain=tuple(1 + 0.02 * (place + i + c) for c in range(channels)),
            offset=tuple(0.03 * place - 0.01 * c for c in range(channels)),
            state_gain=tuple(0.01 * place * (c + i) for c in range(channels)),
            sigma_corrected=row.sigma * (1 - 0.1 * place),
            residual_variance=0.01 * place,
            unabsorbed_variance=0.0,
        )
        for place, name in enumerate(PRECISIONS)
    }
    return Step(
        step=i, timestep=row.timestep, precision=CHOSEN[i], x_coeff=row.x_coeff, out_coeff=row.out_coeff, sigma=row.sigma,
        prediction_coeffs=row.prediction_coeffs, history_coeffs=row.history_coeffs, input_scale=row.input_scale, clip=row.clip,
        corrections=corrections,
    )  # fmt: skip


def _manifest(folder: Path, channels: int, guidance: float, *, conditional: bool) -> Manifest:
    labels = InputRecord(name="class_labels", dtype="int64", shape=())
    conditioning = ConditioningRecord(inputs=(labels,), rows=CLASSES, null_class=CLASSES) if conditional else None
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(
        model=ModelRecord(
            family="tiny", parameters=100, sample_shape=(channels, SIZE, SIZE), conditioning=conditioning, noise_schedule=NOISE_SCHEDULE
        ),
        parameterization="epsilon",
        target=TargetRecord(name="onnxruntime", high_precision="fp32", profile=None, workspace_gib=None),
        placement="onnxruntime",
        measured_on="onnxruntime",
        precisions={
            name: PrecisionRecord(
                graph=_graph(name), weight_bits=bits[0], activation_bits=bits[1], bit_operations_saved=1.0, bit_operations_saved_all=1.0
            )
            for name, bits in PRECISIONS.items()
        },
        guidance=guidance,
        files={path.relative_to(folder).as_posix(): _file_record(path) for path in paths},
        versions={},
    )
