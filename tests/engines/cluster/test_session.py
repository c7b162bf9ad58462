"""How a cluster is found, or its absence told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engines.cli import main
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.errors import MissingBackendError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


class FakeRay:
    """Records how it is connected."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failure = failure

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **options: Any) -> None:
        self.calls.append((address, options))
        if self.failure is not None:
            raise self.failure

    def shutdown(self) -> None:
        self.calls.append(("shutdown", {}))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return ray


def test_without_an_address_the_cluster_is_this_machine_alone(fake: FakeRay) -> None:
    with joined(Cluster()):
        pass
    (address, options), (end, _) = fake.calls
    assert (address, end) == ("local", "shutdown")
    assert options["include_dashboard"] is False
    assert options["num_cpus"] > 0


def test_an_address_comes_before_the_environments(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for cluster, expected in ((Cluster(), "10.0.0.1:6379"), (Cluster("10.0.0.2:6379"), "10.0.0.2:6379")):
        fake.calls.clear()
        with joined(cluster):
            pass
        address, options = fake.calls[0]
        assert address == expected
        assert "num_cpus" not in options


def test_no_cluster_at_the_address_is_told(fake: FakeRay) -> None:
    fake.failure = ConnectionError("refused")
    with pytest.raises(MissingBackendError, match=r"(?s)10\.0\.0\.1:6379: refused.*ray start --head"), joined(Cluster("10.0.0.1:6379")):
        pass


def test_missing_ray_is_told_with_exit_code_3(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["sample", str(tiny.folder), "--num", "2", "--seed", "1", "--output", str(tmp_path / "out"), "--ray"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 3
    assert "pip install 'ptqd-export[ray]'" in done.stderr


def test_workers_of_no_cluster_are_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    arguments = ["sample", str(tiny.folder), "--num", "2", "--seed", "1", "--output", str(tmp_path / "out"), "--ray-cpus", "2"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "expected: --ray as well" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("size", "room"), [(WorkerSize(1, 0), 12), (WorkerSize(3, 0), 3), (WorkerSize(1, 1), 4), (WorkerSize(4, 1), 2), (WorkerSize(8, 0), 1)]
)
def test_room_is_counted_by_machine(size: WorkerSize, room: int) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert size.room(SimpleNamespace(nodes=lambda: nodes)) == room


def test_workers_on_a_gpu_have_one_each() -> None:
    assert WorkerSize.of(Cluster(), "tensorrt") == WorkerSize(1, 1)
    assert WorkerSize.of(Cluster(cpus=4), "onnxruntime-cuda") == WorkerSize(4, 1)
    assert WorkerSize.of(Cluster(cpus=4), "onnxruntime") == WorkerSize(4, 0)
    assert WorkerSize.of(Cluster(cpus=4), "openvino") == WorkerSize(4, 0)
