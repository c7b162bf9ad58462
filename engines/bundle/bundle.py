"""The bundle: `manifest.json` and the files that it lists, each verified against its hash before use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from engines.bundle.bundle_files import COPY_AGAIN, BundleFiles
from engines.bundle.contract import contract, unsealed
from engines.bundle.image_size import ImageSize, size_name
from engines.bundle.manifest import MANIFEST, Manifest, PrecisionRecord
from engines.chain.features import precision_and_cut
from engines.chain.schedule import Schedule
from engines.errors import BundleError, UnknownNameError, UsageError
from engines.untrusted.external_data import WEIGHTS, external_files, is_weights_of
from engines.untrusted.untrusted_json import json_object, read_json_object

DEFAULT = "default"
"""Name of the schedule that the build makes."""

UNFINISHED_BUILD = "local/stages"
"""Where a build keeps its finished stages. If this folder exists but the manifest does not, the build is unfinished."""


def size_folder(size: Sequence[int]) -> str:
    """Return the prefix of the files of a further size."""
    return f"sizes/{size_name(size)}/"


class Bundle:
    """An opened bundle, at one of its sizes. Each file is verified when it is requested, so opening costs nothing for unused files.

    Args:
        folder: folder of the bundle.
        manifest: its whole manifest, which the attribute `whole` keeps; `manifest` says what holds at the size.
        number: number of the size.
    """

    def __init__(self, folder: Path, manifest: Manifest, number: int = 0) -> None:
        self.folder = folder
        self.whole = self.manifest = manifest
        self._home = ""
        if number > 0:
            found = manifest.sizes[number - 1]
            self.manifest = manifest.model_copy(update={"model": found.model, "precisions": found.precisions, "sizes": ()})
            self._home = size_folder(found.model.image_size)
        self._files = BundleFiles(folder, manifest.files)
        self._schedules: dict[str, Schedule] = {}

    @property
    def is_first_size(self) -> bool:
        """Whether the bundle is opened at its first size."""
        return not self._home

    @property
    def at_sizes(self) -> tuple[Bundle, ...]:
        """The bundle at each of its sizes."""
        return tuple(Bundle(self.folder, self.whole, number) for number in range(len(self.whole.models)))

    def at(self, size: ImageSize | None) -> Bundle:
        """Return the bundle at a size [height, width] in pixels; None takes the first.

        Raises:
            UsageError: the bundle has no such size.
        """
        known = [size_name(model.image_size) for model in self.whole.models]
        name = known[0] if size is None else size_name(size)
        if name not in known:
            raise UsageError(
                "The bundle has no graphs for images of this size.",
                found=name,
                expected=" or ".join(known),
                mend="sample at a size of the bundle, or build it again with this size in model.sizes",
            )
        return Bundle(self.folder, self.whole, known.index(name))

    @classmethod
    def open(cls, folder: Path, size: ImageSize | None = None) -> Bundle:
        """Read and check the manifest; return the bundle at a size, see `at`.

        Raises:
            UsageError: the folder contains no bundle, or the bundle has no such size.
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
        return cls(folder, contract(Manifest, unsealed(Manifest, read_json_object(path, BundleError), path), path)).at(size)

    def path(self, name: str) -> Path:
        """Return the path of a file after verifying its size and hash; for runtimes, which open files themselves."""
        return self._files.path(name)

    def read(self, name: str) -> bytes:
        """Return the content of a file, verified against the manifest's size and hash."""
        return self._files.read(name)

    def check_files(self) -> None:
        """Check every file of the manifest, also those that no command may need. This reads the whole bundle.

        Raises:
            BundleError: a file is missing, or was changed or damaged.
        """
        self._files.check_all()

    def json(self, name: str) -> dict[str, object]:
        """Return the object in a JSON file of the bundle."""
        return json_object(self.read(name), self.folder / name, BundleError)

    def verified_graphs(self, network: str, *, reuses: bool = False) -> list[tuple[float, Path]]:
        """Return the paths of a network's graphs, one per group of steps, after verifying them and the weights that runtimes read
        themselves. Each comes with the bound that its timesteps lie below; the first, the noisiest, has an infinite one.

        Args:
            network: a precision or, to keep features, a precision at a cut; see `engines.chain.features`.
            reuses: return the graphs that take features instead.

        Raises:
            UsageError: the bundle has no such precision or cut.
        """
        precision, cut = precision_and_cut(network)
        record = self.precision(precision)
        if cut is None:
            return [(one.below, self.graph(one.graph, record.weights_of)) for one in record.networks]
        if cut not in record.cuts:
            raise UnknownNameError(f"The bundle's {precision} has no such cut.", found=cut, known=record.cuts)
        cuts = ((one.below, one.cuts[cut]) for one in record.networks)
        return [(below, self.graph(graphs.reuse if reuses else graphs.full, record.weights_of)) for below, graphs in cuts]

    def verified_graph(self, precision: str, timestep: float | None = None) -> Path:
        """Return the path of the graph that a precision runs at a timestep, after verifying it; None takes the noisiest group of steps.

        Raises:
            UsageError: the bundle has no such precision.
        """
        graphs = self.verified_graphs(precision)
        return graphs[0][1] if timestep is None else next(path for below, path in reversed(graphs) if timestep < below)

    def precision(self, name: str) -> PrecisionRecord:
        """Return the manifest's record of a precision.

        Raises:
            UsageError: the bundle has no such precision.
        """
        record = self.manifest.precisions.get(name)
        if record is None:
            raise UnknownNameError("The bundle has no such precision.", found=name, known=self.manifest.precisions)
        return record

    def graph(self, name: str, whole: str | None = None) -> Path:
        """Return the path of a graph after verifying it and its weights, and that it reads no other file.

        Args:
            name: name of the graph in the bundle.
            whole: for a piece of a network, a group of steps or a further size, the graph beside it whose weights it reads; None: its own.

        Raises:
            BundleError: the graph is damaged, or reads another file.
        """
        path, owner = self.path(name), whole or name
        beside = PurePosixPath(owner).parent == PurePosixPath(name).parent
        allowed = {self.path(file).name for file in self.manifest.files if beside and is_weights_of(file, owner)}
        try:
            wanted = external_files(path) - allowed
        except (OSError, ValueError) as error:
            raise BundleError("A graph of the bundle cannot be read.", found=f"{path}: {error}", mend=COPY_AGAIN) from error
        if wanted:
            raise BundleError(
                "A graph of the bundle reads a file that is not its own.",
                found=f"{path} reads {min(wanted)!r}",
                expected=f"no file other than {PurePosixPath(owner).name}{WEIGHTS}, which the manifest must list, or its shards",
                mend="do not use this bundle unless you know why it reads that file; rebuild it",
            )
        return path

    @property
    def schedules(self) -> tuple[str, ...]:
        """The names of the schedules, in alphabetical order."""
        return tuple(sorted(PurePosixPath(file).stem for file in self.manifest.files if file.startswith(f"{self._home}schedules/")))

    def schedule_file(self, name: str) -> str:
        """Return the name of a schedule's file."""
        return f"{self._home}schedules/{name}.json"

    @property
    def statistics_folder(self) -> str:
        """Name of the folder with the statistics."""
        return f"{self._home}statistics/{self.manifest.placement}"

    def schedule(self, name: str = DEFAULT) -> Schedule:
        """Return a schedule of the bundle by name, which is read once.

        Raises:
            UsageError: the bundle has no schedule with this name.
            BundleError: the schedule is damaged, or does not fit the bundle.
        """
        file = self.schedule_file(name)
        if file not in self.manifest.files:
            raise UnknownNameError("The bundle has no such schedule.", found=name, known=self.schedules)
        if file not in self._schedules:
            schedule = contract(Schedule, self.json(file), self.folder / file)
            self._check_fits(schedule, self.folder / file)
            self._schedules[file] = schedule
        return self._schedules[file]

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
