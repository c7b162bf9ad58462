"""On a GPU: engines run, as right as their graphs, and the state on the device takes the host's steps. Skipped where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import FLAVOURS, FlavourName
from engines.errors import MissingBackendError
from tools.gpu_check import check, print_check

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

PROFILE = {"min": 1, "opt": 4, "max": 8}
TARGET = {"name": "tensorrt-rtx", "high_precision": "fp32", "profile": PROFILE, "workspace_gib": None}


@pytest.fixture(params=list(FLAVOURS))
def flavour(request: pytest.FixtureRequest) -> FlavourName:
    name: FlavourName = request.param
    try:
        FLAVOURS[name].load()
        Cuda()
    except MissingBackendError as error:
        pytest.skip(str(error).splitlines()[0])
    return name


def test_everything_runs_and_agrees(flavour: FlavourName, own_tiny: TinyBundle) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["target"] = TARGET

    own_tiny.edit_json("manifest.json", change)
    found = check(own_tiny.folder, flavour, batch=2)
    print_check(found)
    assert [row.precision for row in found.precisions] == ["fp32", "w4a8", "w8a8"]
    assert min(row.parity_db for row in found.precisions) > 40, "TF32 keeps ten bits"
    assert found.update_difference < 1e-3
    assert found.shared_bytes > 0
