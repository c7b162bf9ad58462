"""Checkpoints as training runs leave them are read without running a thing; attacks are refused."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.errors import PtqdError
from ptqd_export.models.tensors.checkpoint import read_tensors

WEIGHTS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.bias": torch.tensor([0.5, -1.25]),
    "half": torch.tensor([1.5, 2.5], dtype=torch.float16),
    "brain": torch.tensor([3.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
}


def _saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def _assert_weights(found: dict[str, Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.fixture
def lightning() -> Iterator[types.ModuleType]:
    """A module with classes like Lightning's, to be imported while the checkpoint is written and gone when it is read."""
    module = types.ModuleType("pytorch_lightning_like")
    source = """
import enum
class ModelCheckpoint:
    def __init__(self): self.monitor = "val/loss"
    def __setstate__(self, state): raise RuntimeError("code of an unknown class ran")
class AttributeDict(dict): pass
class Items(list): pass
"""
    exec(source, module.__dict__)  # its classes must belong to a module that can vanish
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def test_a_state_dict_alone_is_read(tmp_path: Path) -> None:
    _assert_weights(read_tensors(_saved(WEIGHTS, tmp_path / "model.ckpt")))


def test_a_checkpoint_of_a_training_run_is_read_without_the_classes_in_it(lightning: types.ModuleType, tmp_path: Path) -> None:
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    lightning_objects = [lightning.ModelCheckpoint(), lightning.AttributeDict(lr=1e-4), lightning.Items([1, 2])]
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(WEIGHTS),
        "callbacks": {lightning.ModelCheckpoint: {"best_model_score": torch.tensor(0.1), "best_model_path": Path("x/y.ckpt")}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last": np.float64(0.5), "of": defaultdict(dict, a={1: 2})}],
        "hyper_parameters": lightning_objects,
        "seen": {1, 2},
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "table": np.arange(3),
    }
    path = _saved(content, tmp_path / "model.ckpt")
    del sys.modules[lightning.__name__]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    _assert_weights(read_tensors(path))
    assert lightning.__name__ not in sys.modules


def test_parameters_and_shared_and_transposed_tensors_are_read(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    content = {"parameter": nn.Parameter(base.clone()), "transposed": base.T, "column": base[:, 1], "base": base}
    found = read_tensors(_saved(content, tmp_path / "model.ckpt"))
    assert all(torch.equal(found[name], value) for name, value in content.items())
    assert found["transposed"].stride() == (1, 3)


def test_tensors_lie_in_the_file_until_they_are_used(tmp_path: Path) -> None:
    path = _saved({"state_dict": WEIGHTS, "optimizer_states": [{"m": torch.full((4096,), 2.0)}]}, tmp_path / "model.ckpt")
    tensor = read_tensors(path)["a.weight"]
    raw = path.read_bytes()
    with path.open("r+b") as file:  # a map shows what is written to the file after it was read
        file.seek(raw.index(WEIGHTS["a.weight"].numpy().tobytes()))
        file.write(np.float32(99.0).tobytes())
    assert tensor[0, 0] == 99.0
    tensor[0, 1] = -1.0
    assert np.float32(-1.0).tobytes() not in path.read_bytes()


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "model.safetensors")
    _assert_weights(read_tensors(tmp_path / "model.safetensors"))


# Attacks

MARKER = "ran"


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object, **more: object) -> None:
        self.reduced = (function, arguments, *more.values())

    def __reduce__(self) -> Any:
        return self.reduced


def _touch(path: str) -> Call:
    return Call(os.mkdir, path)


ATTACKS: dict[str, Callable[[str], object]] = {
    "os": _touch,
    "system": lambda path: Call(os.system, f"mkdir {path}"),
    "eval": lambda path: Call(builtins.eval, f"__import__('os').mkdir({path!r})"),
    "exec": lambda path: Call(builtins.exec, f"import os; os.mkdir({path!r})"),
    "partial": lambda path: Call(functools.partial, os.mkdir, path),
    "in a state": lambda path: Call(types.SimpleNamespace, state={"inside": _touch(path)}),
    "as an argument": lambda path: Call(OrderedDict, [("x", _touch(path))]),
    "as a setter of state": lambda path: Call(Path, "x", state=path, items=None, pairs=None, setter=_swapped(os.mkdir)),
    "as a key": lambda path: {(_touch(path),): 1},
    "in a list that is appended to": lambda path: [1, [_touch(path)]],
    "in torch": lambda path: Call(torch.hub.load, path, "model", source="local"),
    "torch.load": lambda path: Call(torch.load, path),
}


def _swapped(function: Callable[[str], object]) -> Callable[[object, str], object]:
    return functools.partial(_second, function)


def _second(function: Callable[[str], object], _: object, path: str) -> object:
    return function(path)


RUNNING = (
    "os",
    "system",
    "eval",
    "exec",
    "in a state",
    "as an argument",
    "as a setter of state",
    "as a key",
    "in a list that is appended to",
)
"""Those that a plain unpickler is seen to run."""


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(name: str, place: str, tmp_path: Path) -> None:
    marker = tmp_path / MARKER
    attack = ATTACKS[name](str(marker))
    content = {"beside": {"state_dict": WEIGHTS, "callbacks": attack}, "inside": {"state_dict": WEIGHTS | {"x": attack}}, "instead": attack}
    path = _saved(content[place], tmp_path / "model.ckpt")
    with pytest.raises(PtqdError, match="would run code"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", RUNNING)
def test_the_attacks_do_run_where_nothing_stops_them(name: str, tmp_path: Path) -> None:
    marker = tmp_path / MARKER
    pickle.loads(pickle.dumps(ATTACKS[name](str(marker)), protocol=2))
    assert marker.exists()


def _archive(pickled: bytes, path: Path, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled, zipfile.ZIP_STORED)
        for key, values in (records or {}).items():
            archive.writestr(f"model/data/{key}", values)
    return path


def test_the_call_is_named(tmp_path: Path) -> None:
    path = _archive(b"cposix\nsystem\n(S'true'\ntR.", tmp_path / "model.ckpt")
    with pytest.raises(PtqdError, match=r"a call of posix\.system"):
        read_tensors(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x02os\x8c\x0epath.os.system\x93\x8c\x04true\x85R.",  # a dotted name
        b"c__builtin__\neval\n(S'1'\ntR.",  # a name of Python 2
        b"(cos\nsystem\n(S'true'\ntRtQ.",  # inside of a persistent id
    ],
    ids=["INST", "OBJ", "STACK_GLOBAL", "dotted", "Python 2", "persistent id"],
)
def test_every_way_to_call_is_refused(pickled: bytes, tmp_path: Path) -> None:
    with pytest.raises(PtqdError, match="would run code"):
        read_tensors(_archive(pickled, tmp_path / "model.ckpt"))


def test_an_unknown_class_is_not_imported(tmp_path: Path) -> None:
    """`antigravity` opens a browser and `this` prints when they are imported."""
    pickled = b"}(S'state_dict'\n}S'callbacks'\ncthis\nZen\nS'more'\n(lcantigravity\nfly\nau."
    assert read_tensors(_archive(pickled, tmp_path / "model.ckpt")) == {}
    assert not {"this", "antigravity"} & sys.modules.keys()


# Damage


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains no state dict"),
        ({"state_dict": {"a": 1}}, "not a tensor"),
        ({"state_dict": {3: WEIGHTS["half"]}}, "not a tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PtqdError, match=message):
        read_tensors(_saved(content, tmp_path / "model.ckpt"))


def _described(key: str = "0", elements: int = 4, size: str = "(I4\nt", stride: str = "(I1\nt", offset: int = 0) -> bytes:
    """The pickle of {"a": a tensor of float32} as torch.save writes it, in the text protocol."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{elements}\ntQ"
    return f"}}(S'a'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{size}{stride}I00\nNtRu.".encode()


def test_a_tensor_written_by_hand_is_read(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    found = read_tensors(_archive(_described(), tmp_path / "model.ckpt", {"0": values.tobytes()}))
    assert found["a"].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (_described(key="1"), "no uncompressed record 1"),
        (_described(key="../../secret"), "no uncompressed record"),
        (_described(elements=5), "4 values in 0"),
        (_described(size="(I5\nt"), "beyond its storage"),
        (_described(offset=1), "beyond its storage"),
        (_described(stride="(I2\nt"), "beyond its storage"),
        (_described(offset=-1), "description of a tensor in the checkpoint is invalid"),
        (_described(size="(I-4\nt"), "description of a tensor in the checkpoint is invalid"),
        (_described(size="(S'4'\nt"), "description of a tensor in the checkpoint is invalid"),
        (_described()[:-9], "cannot be read"),
        (b"(S'storage'\nI3\ntQ.", "not a tensor"),
    ],
)
def test_a_tensor_outside_of_the_file_is_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    path = _archive(pickled, tmp_path / "model.ckpt", {"0": np.arange(4, dtype=np.float32).tobytes()})
    with pytest.raises(PtqdError, match=message):
        read_tensors(path)


def test_compressed_records_and_other_formats_are_refused(tmp_path: Path) -> None:
    compressed = _archive(_described(), tmp_path / "compressed.ckpt", {"0": bytes(16)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(PtqdError, match="no uncompressed record"):
        read_tensors(compressed)
    with (tmp_path / "legacy.ckpt").open("wb") as file:
        torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False)
    with pytest.raises(PtqdError, match=r"torch\.save of version 1\.6"):
        read_tensors(tmp_path / "legacy.ckpt")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    (tmp_path / "cut.ckpt").write_bytes(buffer.getvalue()[:-100])
    with pytest.raises(PtqdError, match="cannot be read"):
        read_tensors(tmp_path / "cut.ckpt")
