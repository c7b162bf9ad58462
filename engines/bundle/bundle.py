"""The bundle: `manifest.json` and the files that it lists, each verified against its hash before use."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from engines.bundle.bundle_files import COPY_AGAIN, BundleFiles, is_plain
from engines.bundle.contract import contract, sealed, unsealed
from engines.chain.schedule import Schedule, Strict
from engines.errors import BundleError, UsageError
from engines.host.files import write_text
from engines.samplers.levels.noise_schedule import NoiseSchedule, PredictionType
from engines.untrusted.external_data import external_files
from engines.untrusted.limits import FILE_BYTES, ROWS, Batch, Label, Name, Scale, Shape
from engines.untrusted.untrusted_json import json_object, read_json_object

MANIFEST = "manifest.json"
DEFAULT = "default"
"""Name of the schedule that the build makes."""

UNFINISHED_BUILD = "local/stages"
"""Where a build keeps its finished stages. If this folder exists but the manifest does not, the build is unfinished."""


class FileRecord(Strict):
    """Hash and size of one file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[NonNegativeInt, Field(le=FILE_BYTES)]


class InputRecord(Strict):
    """One input of the network besides the state and the timestep; `shape` is that of one sample, without the batch axis."""

    name: Name
    dtype: Literal["int64", "float32"]
    shape: Shape


class ConditioningRecord(Strict):
    """What a sample can be conditioned on: one of `rows` choices, either class labels 0..rows-1 or rows of the arrays in `file`."""

    inputs: Annotated[tuple[InputRecord, ...], Field(min_length=1)]
    rows: Annotated[PositiveInt, Field(le=ROWS)]
    null_class: Label | None = None
    file: Name | None = None


class DecoderRecord(Strict):
    """The decoder of a latent model: its graph takes at most `batch` states at a time and returns images of `image_shape`."""

    file: Name
    image_shape: Annotated[Shape, Field(min_length=3, max_length=3)]
    batch: Batch


class TextEncoderRecord(Strict):
    """One text encoder: its graph, its tokenizer, the length that prompts are padded to, and the conditioning inputs that it produces."""

    graph: Name
    tokenizer: Name
    tokens: Batch
    inputs: Annotated[tuple[Name, ...], Field(min_length=1)]


class TextRecord(Strict):
    """How prompts become conditioning: the outputs of several encoders for one input are concatenated; `fixed` inputs never vary."""

    encoders: Annotated[tuple[TextEncoderRecord, ...], Field(min_length=1)]
    fixed: dict[Name, tuple[FiniteFloat, ...]]
    zero_without_negative: bool


class ModelRecord(Strict):
    """The network behind every graph."""

    family: Name
    parameters: PositiveInt
    sample_shape: Annotated[Shape, Field(min_length=2)]
    conditioning: ConditioningRecord | None
    noise_schedule: NoiseSchedule
    decoder: DecoderRecord | None = None
    text: TextRecord | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the final image: the decoder's output, or the state itself if there is no decoder."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape


class PiecesRecord(Strict):
    """A network in pieces, which share the weights of the whole graph.

    `body` runs on every state. `embeddings` maps each of its inputs that depends only on timestep and conditioning to the graph that
    computes it.
    """

    body: Name
    embeddings: Annotated[dict[Name, Name], Field(min_length=1)]


class PrecisionRecord(Strict):
    """One precision: its graph, its cost relative to the float32 graph, and the versions of the libraries that made the graph
    (empty in bundles of schema version 1).
    """

    graph: Name
    weight_bits: Annotated[PositiveInt, Field(le=64)]
    activation_bits: Annotated[PositiveInt, Field(le=64)]
    bit_operations_saved: PositiveFloat
    bit_operations_saved_all: PositiveFloat
    pieces: PiecesRecord | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class ProfileRecord(Strict):
    """Rows per network call that engines are built for. Under guidance a sample takes two rows, so opt and max are twice the plan's."""

    min: Batch
    opt: Batch
    max: Batch


class TargetRecord(Strict):
    """The runtime that the graphs are for, and the settings of its engines."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    provider: Literal["CPU", "CUDA"] = "CPU"
    high_precision: Literal["fp32", "fp16", "bf16"]
    profile: ProfileRecord | None
    workspace_gib: Annotated[float, Field(gt=0)] | None


class Manifest(Strict):
    """Everything that must be known at run time before another file is opened."""

    schema_version: Literal[1, 2] = 2
    model: ModelRecord
    parameterization: PredictionType
    target: TargetRecord
    placement: Name
    measured_on: Name
    precisions: Annotated[dict[Name, PrecisionRecord], Field(min_length=1)]
    guidance: Scale
    files: dict[Name, FileRecord]
    versions: dict[str, str]

    @field_validator("files")
    @classmethod
    def _stays_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not is_plain(name):
                raise ValueError(f"{name!r} is not a plain relative path inside the bundle")
        return files


class Bundle:
    """An opened bundle. Each file is verified when it is requested, so opening the bundle costs nothing for unused files."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = BundleFiles(folder, manifest.files)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check the manifest.

        Raises:
            UsageError: the folder contains no bundle.
            BundleError: the manifest is damaged or has another schema version.
        """
        path = folder / MANIFEST
        if not path.exists() and (folder / UNFINISHED_BUILD).is_dir():
            raise UsageError(
                "The build of this bundle has not finished.",
                found=f"{folder / UNFINISHED_BUILD}, but no {path.name}",
                expected="a folder that `ptqd-export build` finished",
                mend="run the same `ptqd-export build` again: it resumes where it stopped",
            )
        if not path.exists():
            raise UsageError(
                "This is not a bundle.",
                found=f"no {path}",
                expected="a folder that `ptqd-export build` finished",
                mend="run `ptqd-export build --plan plan.json`, and pass the plan's output folder",
            )
        return cls(folder, contract(Manifest, unsealed(Manifest, read_json_object(path, BundleError), path), path))

    def path(self, name: str) -> Path:
        """Return the path of a file after verifying its size and hash; for runtimes, which open files themselves."""
        return self._files.path(name)

    def read(self, name: str) -> bytes:
        """Return the content of a file, verified against the manifest's size and hash."""
        return self._files.read(name)

    def json(self, name: str) -> dict[str, object]:
        """Return the object in a JSON file of the bundle."""
        return json_object(self.read(name), self.folder / name, BundleError)

    def verified_graph(self, precision: str) -> Path:
        """Return the path of a precision's graph after verifying it and the weights beside it, which runtimes read themselves.

        Raises:
            UsageError: the bundle has no such precision.
        """
        return self.graph(self.precision(precision).graph)

    def precision(self, name: str) -> PrecisionRecord:
        """Return the manifest's record of a precision.

        Raises:
            UsageError: the bundle has no such precision.
        """
        record = self.manifest.precisions.get(name)
        if record is None:
            known = " or ".join(self.manifest.precisions)
            raise UsageError("The bundle has no such precision.", found=name, expected=known)
        return record

    def graph(self, name: str, whole: str | None = None) -> Path:
        """Return the path of a graph after verifying it and its weights, and that it reads no other file.

        Args:
            name: name of the graph in the bundle.
            whole: for a piece of a network, the graph beside it whose weights the piece reads.

        Raises:
            BundleError: the graph is damaged, or reads another file.
        """
        path, weights = self.path(name), f"{whole or name}.data"
        allowed = set[str]()
        if weights in self.manifest.files and PurePosixPath(weights).parent == PurePosixPath(name).parent:
            allowed = {self.path(weights).name}
        try:
            wanted = external_files(path) - allowed
        except (OSError, ValueError) as error:
            raise BundleError("A graph of the bundle cannot be read.", found=f"{path}: {error}", mend=COPY_AGAIN) from error
        if wanted:
            raise BundleError(
                "A graph of the bundle reads a file that is not its own.",
                found=f"{path} reads {min(wanted)!r}",
                expected=f"no file other than {PurePosixPath(weights).name}, which the manifest must list",
                mend="do not use this bundle unless you know why it reads that file; rebuild it",
            )
        return path

    def schedule(self, name: str = DEFAULT) -> Schedule:
        """Return a schedule of the bundle by name.

        Raises:
            UsageError: the bundle has no schedule with this name.
            BundleError: the schedule is damaged, or does not fit the bundle.
        """
        file = f"schedules/{name}.json"
        if file not in self.manifest.files:
            known = sorted(PurePosixPath(f).stem for f in self.manifest.files if f.startswith("schedules/"))
            raise UsageError("The bundle has no such schedule.", found=name, expected=" or ".join(known))
        schedule = contract(Schedule, self.json(file), self.folder / file)
        self._check_fits(schedule, self.folder / file)
        return schedule

    def full_precision(self, schedule: Schedule) -> str:
        """The precision with the most bits that the schedule knows; it needs no correction."""
        records = self.manifest.precisions
        known = [name for name in schedule.precisions if name in records]
        return max(known, key=lambda name: records[name].weight_bits * records[name].activation_bits)

    def _check_fits(self, schedule: Schedule, path: Path) -> None:
        channels = {len(correction.gain) for step in schedule.steps for correction in step.corrections.values()}
        if channels != {self.manifest.model.sample_shape[0]}:
            raise BundleError(
                "A schedule does not fit the bundle's model.",
                found=f"{path}: corrections for {' and '.join(map(str, sorted(channels)))} channels",
                expected=f"{self.manifest.model.sample_shape[0]} channels",
                mend=COPY_AGAIN,
            )
        if not any(name in self.manifest.precisions for name in schedule.precisions):
            raise BundleError(
                "A schedule does not fit the bundle's engines.",
                found=f"{path}: corrections for {', '.join(schedule.precisions)}",
                expected=", ".join(self.manifest.precisions),
                mend=COPY_AGAIN,
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a bundle's manifest completely or not at all."""
    write_text(folder / MANIFEST, json.dumps(sealed(json.loads(manifest.model_dump_json())), indent=1) + "\n")
