"""Checks that a damaged bundle gives either one clear error or the same samples as before."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from click.testing import CliRunner
from hypothesis import strategies as st

from engines.bundle.contract import sealed
from engines.bundle.manifest import MANIFEST
from engines.cli import main
from tests.hostile.conftest import Subject, reject
from tests.hostile.mutations import damaged, damaged_archive, damaged_json
from tests.hostile.worker import Outcome

Run: TypeAlias = Callable[[Sequence[object]], Outcome]

JSON = (MANIFEST, "schedules/default.json", "tokenizer.json")
NATIVE = ("encoder.onnx", "decoder.onnx", "graphs/onnxruntime/w4a8.onnx", "graphs/onnxruntime/w4a8.onnx.data")
"""Files that the runtime itself parses."""


def in_process(arguments: Sequence[object]) -> Outcome:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    raised = result.exception is not None and not isinstance(result.exception, SystemExit)
    message = "".join(traceback.format_exception(result.exception)) if raised else result.stderr
    return Outcome(1 if raised else result.exit_code, message)


def remember(subject: Subject, run: Run) -> Subject:
    """Sample the undamaged bundle with and without prompts, and store the samples as expected."""
    for prompts in (False, True):
        outcome = run(subject.command(prompts))
        assert outcome.exit_code == 0, outcome.message
        subject.expected[str(prompts),] = subject.samples()
    return subject


def check_damage(subject: Subject, run: Run, data: st.DataObject) -> str:
    """Damage any file without updating its hash: the bundle must be refused, or the damage harmless."""
    name = data.draw(st.sampled_from(sorted(subject.files)))
    content = subject.files[name]
    if name == MANIFEST and data.draw(st.booleans()):
        changed = data.draw(damaged_json(json.loads(content))).encode()
    else:
        changed = data.draw(damaged(content))
    (subject.folder / name).write_bytes(changed)
    prompts = name in ("encoder.onnx", "tokenizer.json") or (name != "rows.npz" and data.draw(st.booleans()))
    outcome = run(subject.command(prompts))
    subject.restore()
    if outcome.refused:
        return "refused"
    if outcome.exit_code != 0:
        reject(outcome)
    assert subject.is_as_before(prompts), f"a damaged {name} gave a wrong image"
    return "harmless"


def check_contract(subject: Subject, run: Run, data: st.DataObject) -> str:
    """Damage a contract and update its hash: the bundle must be refused, or give complete and finite samples."""
    name = data.draw(st.sampled_from(JSON))
    changed = data.draw(damaged_json(json.loads(subject.files[name])))
    if name == MANIFEST:
        (subject.folder / name).write_text(_sealed(changed))
    else:
        subject.put(name, changed.encode())
    return _finite_or_refused(subject, run, prompts=True)


def check_archive(subject: Subject, run: Run, data: st.DataObject) -> str:
    """Damage the prepared embeddings and update their hash: the bundle must be refused, or give complete and finite samples."""
    content = subject.files["rows.npz"]
    subject.put("rows.npz", data.draw(damaged(content) | damaged_archive(content)))
    return _finite_or_refused(subject, run, prompts=False)


def check_graph(subject: Subject, run: Run, data: st.DataObject) -> str:
    """Damage a graph or its weights and update their hash: the bundle must be refused, or give complete and finite samples.

    The runtime may also crash.
    """
    name = data.draw(st.sampled_from(NATIVE))
    subject.put(name, data.draw(damaged(subject.files[name])))
    return _finite_or_refused(subject, run, prompts=True)


def _sealed(text: str) -> str:
    """Return the text with a correct digest, or unchanged if no digest can be computed."""
    try:
        return json.dumps(sealed(json.loads(text)))
    except (ValueError, AttributeError):
        return text


def _finite_or_refused(subject: Subject, run: Run, *, prompts: bool) -> str:
    outcome = run(subject.command(prompts))
    subject.restore()
    if outcome.refused:
        return "refused"
    if outcome.crashed:
        return "crashed"
    if outcome.exit_code != 0:
        reject(outcome)
    found = subject.samples()
    assert found["samples"].shape[0] == 2
    assert np.isfinite(found["samples"]).all()
    return "harmless" if subject.is_as_before(prompts) else "another chain"


CHECKS: dict[str, Callable[[Subject, Run, Any], str]] = {
    "damage": check_damage, "contract": check_contract, "archive": check_archive, "graph": check_graph,
}  # fmt: skip
"""Checks by kind; `graph` must run in a child process."""
