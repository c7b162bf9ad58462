"""Pictures of mixed batches are those of `ptqd-run sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from engines.apps.serve.sampling.item_sampler import ItemWork
from engines.apps.serve.sampling.items import Item
from engines.apps.serve.sampling.mixed_noise import MixedNoise
from engines.chain.noise import NoiseSource
from engines.cli import main
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def test_noise_of_a_mixed_batch_is_that_of_each_seed() -> None:
    noise, samples = MixedNoise((3, 4, 3), (2, 5)), np.array([0, 0, 7])
    for b, (seed, n) in enumerate(((3, 0), (4, 0), (3, 7))):
        source = NoiseSource(seed, (2, 5))
        np.testing.assert_array_equal(noise.start(samples)[b], source.start(np.array([n]))[0])
        np.testing.assert_array_equal(noise.step(2, samples)[b], source.step(2, np.array([n]))[0])


def test_prompts_of_a_batch_are_its_rows(tiny: TinyBundle, prompted: TinyBundle) -> None:
    of_prompts, of_classes = (ItemWork(FolderCopy(bundle.folder, {}, {}), ChainChoice(), 4).open(1) for bundle in (prompted, tiny))
    pictures = of_prompts([Item(5, 0, 0, prompt) for prompt in ("two", "zero", "two")])
    assert [picture.png for picture in pictures] == [picture.png for picture in of_classes([Item(5, 0, row) for row in (2, 0, 2)])]
    assert pictures[0].png != pictures[1].png


@pytest.mark.parametrize("name", ["tiny", "tiny_decoded"])
def test_pictures_of_mixed_batches_are_those_of_the_command(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle: TinyBundle = request.getfixturevalue(name)
    items = [Item(seed, number, row) for seed, row in ((5, 2), (6, 0)) for number in range(3)]
    mixed = [items[place] for place in (3, 0, 5, 1, 4, 2)]
    pictures = ItemWork(FolderCopy(bundle.folder, {}, {}), ChainChoice(), 4).open(1)(mixed)
    assert {picture.batch for picture in pictures} == {6}
    assert len({picture.png for picture in pictures}) == 6
    for item, picture in zip(mixed, pictures, strict=True):
        folder = tmp_path / str(item.seed)
        if not folder.exists():
            arguments = ["sample", bundle.folder, "--num", 3, "--seed", item.seed, "--classes", item.row, "--output", folder]
            assert CliRunner().invoke(main, [*map(str, arguments)]).exit_code == 0
        assert picture.png == (folder / f"{item.number:08d}.png").read_bytes()
