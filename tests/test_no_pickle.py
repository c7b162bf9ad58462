"""Nothing that is read can run code: the sources call no unpickler and no unsafe loader, but for the one that does not look names up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("engines", "calib", "ptqd_export", "tools")
INERT = Path("ptqd_export/models/tensors/inert_pickle.py")
UNPICKLERS = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg", "jsonpickle"})
SAFE_YAML = frozenset({"safe_load", "parse", "SafeLoader", "AliasEvent", "YAMLError"})
JSON_ALONE = ("Tokenizer", "TokenizerFast", "Scheduler")
"""Classes without weights: all that they read is text."""

RUN_CODE = frozenset({"eval", "exec", "compile"})


def findings(path: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for what in (*_imported(node), *_called(node), *_yaml(node)):
            yield f"{path}:{getattr(node, 'lineno', 0)}: {what}"


def _imported(node: ast.AST) -> Iterator[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    yield from (name for name in names if UNPICKLERS & set(name.split(".")))


def _called(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if _is(keywords.get("allow_pickle"), True):
        yield "allow_pickle=True"
    called = ast.unparse(node.func)
    if called == "torch.load" and not _is(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if _is(keywords.get("trust_remote_code"), True) or _is(keywords.get("use_safetensors"), False):
        yield "code or pickles of a model"
    if called.endswith("from_pretrained") and not (_is(keywords.get("use_safetensors"), True) or called.split(".")[0].endswith(JSON_ALONE)):
        yield f"{called} without use_safetensors=True"
    if called in RUN_CODE or (called.endswith(("read_pickle", "Unpickler")) and "inert" not in called and called != "read_pickle"):
        yield called


def _yaml(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml" and node.attr not in SAFE_YAML:
        yield f"yaml.{node.attr}"


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def of_text(text: str) -> list[str]:
    return list(findings(Path("x.py"), ast.parse(text)))


def test_sources_read_no_pickle_and_run_no_data() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 150
    found = {path.relative_to(ROOT): list(findings(path.relative_to(ROOT), ast.parse(path.read_text()))) for path in paths}
    assert [one for path, of_path in found.items() for one in of_path if path != INERT] == []
    assert any("pickle" in one for one in found[INERT]), "the one that is known"


def test_what_would_run_code_is_found() -> None:
    for text in (
        "import pickle", "from pickle import loads", "import a.pickle as b", "np.load(p, allow_pickle=True)", "torch.load(p)", "eval(t)",
        "torch.load(p, weights_only=False)", "yaml.load(t)", "yaml.unsafe_load(t)", "yaml.Loader", "exec(t)", "pd.read_pickle(p)",
        "M.from_pretrained(p)", "M.from_pretrained(p, use_safetensors=False)", "M.make(p, trust_remote_code=True)",
    ):  # fmt: skip
        assert of_text(text), text
    for text in ("np.load(p, allow_pickle=False)", "np.load(p)", "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "re.compile(t)"):
        assert not of_text(text), text
