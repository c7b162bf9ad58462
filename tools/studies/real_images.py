"""Write real images of the bundled data sets, as references for `ptqd-run evaluate` and the ablation.

python -m tools.studies.real_images digits build/digits-real.npz
python -m tools.studies.real_images coloured build/coloured-real.npz
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import torch

from engines.host.files import writable_folder
from tools.coloured.data import coloured
from tools.digits.data import digits

COLOURED_COUNT = 8192
SEED = 1
"""Seed of the coloured digits; training uses a different one."""


def _coloured() -> torch.Tensor:
    return coloured(COLOURED_COUNT, torch.Generator().manual_seed(SEED)).images


DATA: Mapping[str, Callable[[], torch.Tensor]] = {"digits": lambda: digits()[0], "coloured": _coloured}


@click.command()
@click.argument("name", type=click.Choice(list(DATA)))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(name: str, output: Path) -> None:
    images = DATA[name]().numpy()
    writable_folder(output.absolute().parent)
    np.savez(output, samples=images)
    click.echo(f"{len(images)} images in {output}")


if __name__ == "__main__":
    main()
