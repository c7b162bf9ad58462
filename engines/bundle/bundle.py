"""The bundle contract: `manifest.json` and the files that it names, each verified against its hash before it is used."""

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
"""Where a build keeps what it has done so far; without a manifest beside it, it has not finished."""


class FileRecord(Strict):
    """Identity of one file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[NonNegativeInt, Field(le=FILE_BYTES)]


class InputRecord(Strict):
    """One input of the network besides the state and the timestep: its shape is that of one sample, without the batch."""

    name: Name
    dtype: Literal["int64", "float32"]
    shape: Shape


class ConditioningRecord(Strict):
    """What a sample can be conditioned on: `rows` choices, either class labels 0..rows-1 or rows of the arrays in `file`."""

    inputs: Annotated[tuple[InputRecord, ...], Field(min_length=1)]
    rows: Annotated[PositiveInt, Field(le=ROWS)]
    null_class: Label | None = None
    file: Name | None = None


class DecoderRecord(Strict):
    """The first stage of a latent model: its graph takes states, at most `batch` at a time, and gives images of `image_shape`."""

    file: Name
    image_shape: Annotated[Shape, Field(min_length=3, max_length=3)]
    batch: Batch


class TextEncoderRecord(Strict):
    """One text encoder: its graph, its tokenizer, the length that prompts are padded to, and the conditioning inputs that it gives."""

    graph: Name
    tokenizer: Name
    tokens: Batch
    inputs: Annotated[tuple[Name, ...], Field(min_length=1)]


class TextRecord(Strict):
    """How prompts become conditions: what several encoders give for one input is concatenated, and `fixed` inputs are the same for all."""

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
        """Shape of what people look at: the decoder's images, or the states themselves."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape


class PiecesRecord(Strict):
    """A network in pieces: `body` takes every state; what depends on timestep and conditions alone is made by a graph for each of its
    inputs in `embeddings`. Their weights are those of the whole graph.
    """

    body: Name
    embeddings: Annotated[dict[Name, Name], Field(min_length=1)]


class PrecisionRecord(Strict):
    """One precision: its graph, what it costs relative to the float32 graph, and the versions of the libraries that made the graph
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
    """Rows of a network call that engines are built for; guidance makes two of a sample, so that opt and max are twice the plan's."""

    min: Batch
    opt: Batch
    max: Batch


class TargetRecord(Strict):
    """The runtime that the graphs are for, and what its engines are built with."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    provider: Literal["CPU", "CUDA"] = "CPU"
    high_precision: Literal["fp32", "fp16", "bf16"]
    profile: ProfileRecord | None
    workspace_gib: Annotated[float, Field(gt=0)] | None


class Manifest(Strict):
    """Everything that the run time must know before it opens another file."""

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
    """An opened bundle. Files are verified when they are asked for, so that opening costs nothing that is not used."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = BundleFiles(folder, manifest.files)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check the manifest.

        Raises:
            UsageError: there is no bundle in this folder.
            BundleError: the manifest is damaged or of another schema version.
        """
        path = folder / MANIFEST
        if not path.exists() and (folder / UNFINISHED_BUILD).is_dir():
            raise UsageError(
                "The build of this bundle has not finished.",
                found=f"{folder / UNFINISHED_BUILD}, but no {path.name}",
                expected="a folder that `ptqd-export build` finished",
                mend="run the same `ptqd-export build` again: it goes on where it stopped",
            )
        if not path.exists():
            raise UsageError(
                "This is not a bundle.",
                found=f"no {path}",
                expected="a folder that `ptqd-export build` finished",
                mend="run `ptqd-export build --plan plan.json`, and give the plan's output folder",
            )
        return cls(folder, contract(Manifest, unsealed(Manifest, read_json_object(path, BundleError), path), path))

    def path(self, name: str) -> Path:
        """Where a file lies, once its size and hash are those of the manifest: for runtimes, which open files by themselves."""
        return self._files.path(name)

    def read(self, name: str) -> bytes:
        """The content of a file of the bundle, of the size and hash that the manifest says."""
        return self._files.read(name)

    def json(self, name: str) -> dict[str, object]:
        """The object in a JSON file of the bundle."""
        return json_object(self.read(name), self.folder / name, BundleError)

    def verified_graph(self, precision: str) -> Path:
        """The graph of a precision; weights beside it, which runtimes read by themselves, are verified too.

        Raises:
            UsageError: the bundle has no such precision.
        """
        return self.graph(self.precision(precision).graph)

    def precision(self, name: str) -> PrecisionRecord:
        """What the manifest says of a precision.

        Raises:
            UsageError: the bundle has no such precision.
        """
        record = self.manifest.precisions.get(name)
        if record is None:
            known = " or ".join(self.manifest.precisions)
            raise UsageError("The bundle has no engine of this precision.", found=name, expected=known)
        return record

    def graph(self, name: str, whole: str | None = None) -> Path:
        """A graph by its name in the bundle, verified with the weights beside it; it reads no other file.

        Args:
            name: of the graph.
            whole: of a piece, the graph beside it whose weights it reads.

        Raises:
            BundleError: it is damaged, or wants to.
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
                found=f"{path} wants {min(wanted)!r}",
                expected=f"no other file than {PurePosixPath(weights).name}, which the manifest must list",
                mend="do not use this bundle, unless you know why it does; rebuild it",
            )
        return path

    def schedule(self, name: str = DEFAULT) -> Schedule:
        """A schedule of the bundle by name.

        Raises:
            UsageError: the bundle has no schedule of this name.
            BundleError: it is damaged, or does not fit the bundle.
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
                found=f"{path}: corrections of {' and '.join(map(str, sorted(channels)))} channels",
                expected=f"{self.manifest.model.sample_shape[0]} channels",
                mend=COPY_AGAIN,
            )
        if not any(name in self.manifest.precisions for name in schedule.precisions):
            raise BundleError(
                "A schedule does not fit the bundle's engines.",
                found=f"{path}: corrections of {', '.join(schedule.precisions)}",
                expected=", ".join(self.manifest.precisions),
                mend=COPY_AGAIN,
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a bundle's manifest whole, or nothing."""
    write_text(folder / MANIFEST, json.dumps(sealed(json.loads(manifest.model_dump_json())), indent=1) + "\n")
