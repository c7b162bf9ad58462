"""The bundle contract: `manifest.json` and the files that it names, each verified against its hash before it is used."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator

from engines.errors import BundleError, UsageError
from engines.files import sha256
from engines.samplers.noise_schedule import NoiseSchedule, PredictionType
from engines.schedule import Schedule, Strict

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
DEFAULT = "default"
"""Name of the schedule that the build makes."""

Contract = TypeVar("Contract", bound=Strict)


class FileRecord(Strict):
    """Identity of one file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: NonNegativeInt


class InputRecord(Strict):
    """One input of the network besides the state and the timestep: its shape is that of one sample, without the batch."""

    name: str
    dtype: Literal["int64", "float32"]
    shape: tuple[PositiveInt, ...]


class ConditioningRecord(Strict):
    """What a sample can be conditioned on: `rows` choices, either class labels 0..rows-1 or rows of the arrays in `file`."""

    inputs: tuple[InputRecord, ...]
    rows: PositiveInt
    null_class: NonNegativeInt | None = None
    file: str | None = None


class DecoderRecord(Strict):
    """The first stage of a latent model: its graph takes states, at most `batch` at a time, and gives images of `image_shape`."""

    file: str
    image_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=3)]
    batch: PositiveInt


class TextEncoderRecord(Strict):
    """One text encoder: its graph, its tokenizer, the length that prompts are padded to, and the conditioning inputs that it gives."""

    graph: str
    tokenizer: str
    tokens: PositiveInt
    inputs: tuple[str, ...]


class TextRecord(Strict):
    """How prompts become conditions: what several encoders give for one input is concatenated, and `fixed` inputs are the same for all."""

    encoders: Annotated[tuple[TextEncoderRecord, ...], Field(min_length=1)]
    fixed: dict[str, tuple[float, ...]]
    zero_without_negative: bool


class ModelRecord(Strict):
    """The network behind every graph."""

    family: str
    parameters: PositiveInt
    sample_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
    conditioning: ConditioningRecord | None
    noise_schedule: NoiseSchedule
    decoder: DecoderRecord | None = None
    text: TextRecord | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of what people look at: the decoder's images, or the states themselves."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape


class PrecisionRecord(Strict):
    """One precision: its graph, and what it costs relative to the float32 graph."""

    graph: str
    weight_bits: PositiveInt
    activation_bits: PositiveInt
    bit_operations_saved: PositiveFloat
    bit_operations_saved_all: PositiveFloat


class ProfileRecord(Strict):
    """Rows of a network call that engines are built for; guidance makes two of a sample, so that opt and max are twice the plan's."""

    min: PositiveInt
    opt: PositiveInt
    max: PositiveInt


class TargetRecord(Strict):
    """The runtime that the graphs are for, and what its engines are built with."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    provider: Literal["CPU", "CUDA"] = "CPU"
    high_precision: Literal["fp32", "fp16", "bf16"]
    profile: ProfileRecord | None
    workspace_gib: Annotated[float, Field(gt=0)] | None


class Manifest(Strict):
    """Everything that the run time must know before it opens another file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelRecord
    parameterization: PredictionType
    target: TargetRecord
    placement: str
    measured_on: str
    precisions: dict[str, PrecisionRecord]
    guidance: Annotated[float, Field(ge=0)]
    files: dict[str, FileRecord]
    versions: dict[str, str]

    @field_validator("files")
    @classmethod
    def _stays_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
                raise ValueError(f"{name!r} is not a plain relative path inside the bundle")
        return files


class Bundle:
    """An opened bundle. Files are verified when they are asked for, so that opening costs nothing that is not used."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._verified: set[str] = set()

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check the manifest.

        Raises:
            UsageError: there is no bundle in this folder.
            BundleError: the manifest is damaged or of another schema version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise UsageError(
                "This is not a bundle.",
                found=f"no {path}",
                expected="a folder that `ptqd-export build` finished",
                mend="run `ptqd-export build --plan plan.json`, and give the plan's output folder",
            )
        return cls(folder, parse_contract(Manifest, path))

    def path(self, name: str) -> Path:
        """Where a file of the bundle lies, once its size and hash are those of the manifest."""
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError("The manifest does not list a file that is needed.", found=name, expected=", ".join(self.manifest.files))
        path = self.folder / name
        if name not in self._verified:
            self._verify(path, record)
            self._verified.add(name)
        return path

    def verified_graph(self, precision: str) -> Path:
        """The graph of a precision; weights beside it, which runtimes read by themselves, are verified too.

        Raises:
            UsageError: the bundle has no such precision.
        """
        record = self.manifest.precisions.get(precision)
        if record is None:
            known = " or ".join(self.manifest.precisions)
            raise UsageError("The bundle has no engine of this precision.", found=precision, expected=known)
        return self.graph(record.graph)

    def graph(self, name: str) -> Path:
        """A graph by its name in the bundle, verified with the weights beside it."""
        weights = f"{name}.data"
        if weights in self.manifest.files:
            self.path(weights)
        return self.path(name)

    def _verify(self, path: Path, record: FileRecord) -> None:
        if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError("A file of the bundle is missing.", found=f"no {path}", mend="copy the whole bundle again, or rebuild it")
        size, digest = path.stat().st_size, sha256(path)
        if (size, digest) != (record.bytes, record.sha256):
            raise BundleError(
                "A file of the bundle was changed or damaged.",
                found=f"{path}: {size} bytes, sha256 {digest}",
                expected=f"{record.bytes} bytes, sha256 {record.sha256}",
                mend="copy the whole bundle again, or rebuild it",
            )

    def schedule(self, name: str = DEFAULT) -> Schedule:
        """A schedule of the bundle by name.

        Raises:
            UsageError: the bundle has no schedule of this name.
        """
        file = f"schedules/{name}.json"
        if file not in self.manifest.files:
            known = sorted(PurePosixPath(f).stem for f in self.manifest.files if f.startswith("schedules/"))
            raise UsageError("The bundle has no such schedule.", found=name, expected=" or ".join(known))
        return parse_contract(Schedule, self.path(file))


def parse_contract(kind: type[Contract], path: Path) -> Contract:
    """Read a JSON contract file; an unknown schema version is told apart from damage."""
    try:
        text = path.read_text()
        data: Any = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError("A file of the bundle is not JSON.", found=f"{path}: {error}", mend="rebuild the bundle") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            "The bundle has a schema version that this ptqd-run does not know.",
            found=f"{path}: {version!r}",
            expected=str(SCHEMA_VERSION),
            mend="use the ptqd-export version that built it, or rebuild the bundle with this one",
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BundleError("A file of the bundle does not hold what it should.", found=f"{path}: {where}: {first['msg']}") from error
