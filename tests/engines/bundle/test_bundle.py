"""The bundle contract: what is read, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.bundle.bundle import Bundle
from engines.bundle.contract import sealed
from engines.errors import BundleError, PtqdError, UsageError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

GRAPH = "graphs/onnxruntime/fp32.onnx"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

MANIFEST: dict[str, Any] = {
    "schema_version": 6,
    "model": {
        "family": "diffusers UNet2DModel",
        "parameters": 7,
        "sample_shape": [3, 16, 8],
        "conditioning": {
            "inputs": [{"name": "class_labels", "dtype": "int64", "shape": []}],
            "rows": 10,
            "null_class": 10,
            "file": None,
        },
        "noise_schedule": {
            "num_train_timesteps": 500,
            "beta_start": 0.001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "trained_betas": None,
            "rescale_betas_zero_snr": False,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "clip_sample": False,
            "clip_sample_range": 1.0,
            "set_alpha_to_one": True,
            "variance_type": "fixed_small",
            "skip_prk_steps": True,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "final_sigmas_type": "zero",
            "lambda_min_clipped": None,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "shift": 1.0,
            "original_inference_steps": 50,
            "timestep_scaling": 10.0,
            "mu": None,
            "mu_tokens": None,
            "time_shift_type": "exponential",
            "shift_terminal": None,
            "last_sigma": "timestep",
            "sigma_min": None,
            "sigma_max": None,
            "rho": 7.0,
            "whole_timesteps": False,
        },
        "decoder": None,
        "encoder": None,
        "preview": None,
        "text": None,
        "guidance_patch": None,
        "size": None,
        "control": None,
    },
    "parameterization": "v_prediction",
    "target": {"name": "onnxruntime", "provider": "CPU", "high_precision": "fp32", "profile": None, "workspace_gib": None},
    "placement": "onnxruntime",
    "measured_on": "onnxruntime",
    "precisions": {
        "fp32": {
            "graph": GRAPH,
            "weight_bits": 32,
            "activation_bits": 32,
            "bit_operations_saved": 1.0,
            "bit_operations_saved_all": 1.0,
            "pieces": None,
            "groups": [],
            "cuts": {},
            "versions": {"torch": "2.13.0"},
            "weights": None,
        }
    },
    "guidance": 1.5,
    "files": {GRAPH: {"sha256": EMPTY_SHA256, "bytes": 0}},
    "versions": {"numpy": "2.0"},
    "sizes": [],
}


def manifest(**changes: Any) -> dict[str, Any]:
    return {**MANIFEST, **changes}


def write(folder: Path, content: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps(sealed(content) if isinstance(content, dict) else content))
    return folder


def refusal(folder: Path, kind: type[PtqdError] = BundleError) -> str:
    with pytest.raises(kind) as caught:
        Bundle.open(folder)
    assert type(caught.value) is kind
    return str(caught.value)


def test_manifest_reads_as_the_contract_says(tmp_path: Path) -> None:
    read = Bundle.open(write(tmp_path, MANIFEST)).manifest
    assert read.model.sample_shape == (3, 16, 8)
    assert read.model.conditioning is not None
    assert (read.model.conditioning.rows, read.model.conditioning.null_class, read.model.conditioning.inputs[0].shape) == (10, 10, ())
    assert read.precisions["fp32"].graph == GRAPH
    assert json.loads(read.model_dump_json()) == MANIFEST


def test_manifest_of_the_first_version_lacks_the_versions_of_a_precision(tmp_path: Path) -> None:
    (record,) = MANIFEST["precisions"].values()
    old = {name: value for name, value in record.items() if name != "versions"}
    read = Bundle.open(write(tmp_path, {**MANIFEST, "schema_version": 1, "precisions": {"fp32": old}})).manifest
    assert (read.schema_version, read.precisions["fp32"].versions) == (1, {})


def test_precisions_of_the_third_version_have_no_groups_of_steps(tmp_path: Path) -> None:
    (record,) = MANIFEST["precisions"].values()
    old = {name: value for name, value in record.items() if name != "groups"}
    read = Bundle.open(write(tmp_path, {**MANIFEST, "schema_version": 3, "precisions": {"fp32": old}})).manifest
    assert [(one.below, one.graph) for one in read.precisions["fp32"].networks] == [(math.inf, GRAPH)]


def test_text_encoders_of_the_fourth_version_stand_beside_each_other(tmp_path: Path) -> None:
    encoder = {"graph": "text/a.onnx", "tokenizer": "text/a.json", "tokens": 77, "inputs": ["encoder_hidden_states"]}
    text = {"encoders": [encoder], "fixed": {"time_ids": [8.0, 8.0]}, "null_fixed": {}, "zero_without_negative": True}
    read = Bundle.open(write(tmp_path, {**MANIFEST, "schema_version": 4, "model": {**MANIFEST["model"], "text": text}})).manifest
    assert read.model.text is not None
    (one,) = read.model.text.encoders
    assert (one.takes_mask, one.mask_input, one.joins, one.lowercase) == (False, None, "beside", False)
    assert (read.model.text.fixed, read.model.text.padded) == ({"time_ids": (8.0, 8.0)}, {})


def test_groups_of_steps_have_the_cuts_of_their_precision(tmp_path: Path) -> None:
    (record,) = MANIFEST["precisions"].values()
    cut = {"full": GRAPH, "reuse": GRAPH, "bit_operations_saved_all": 2.0}
    group = {"below": 100.0, "graph": GRAPH, "pieces": None, "cuts": {"skip_1": cut}}
    for cuts, fits in (({"skip_1": cut}, True), ({}, False), ({"skip_2": cut}, False)):
        folder = write(tmp_path, {**MANIFEST, "precisions": {"fp32": {**record, "groups": [group], "cuts": cuts}}})
        if fits:
            assert Bundle.open(folder).manifest.precisions["fp32"].networks[1].cuts["skip_1"].full == GRAPH
        else:
            assert "has other cuts" in refusal(folder)


def at_size(size: list[int], graph: str = GRAPH) -> dict[str, Any]:
    """The record of a further size."""
    (record,) = MANIFEST["precisions"].values()
    return {"model": {**MANIFEST["model"], "size": size}, "precisions": {"fp32": {**record, "graph": graph, "weights": GRAPH}}}


def test_a_bundle_has_the_schedules_and_graphs_of_its_size(tmp_path: Path) -> None:
    own, file = "graphs/onnxruntime/fp32.32x24.onnx", {"sha256": EMPTY_SHA256, "bytes": 0}
    files = {GRAPH: file, own: file, "schedules/a.json": file, "sizes/32x24/schedules/b.json": file}
    bundle = Bundle.open(write(tmp_path, {**MANIFEST, "sizes": [at_size([32, 24], own)], "files": files}))
    assert (bundle.schedules, bundle.manifest.model.image_size) == (("a",), (16, 8))
    found = bundle.at((32, 24))
    assert (found.schedules, found.manifest.precisions["fp32"].graph, found.manifest.model.image_size) == (("b",), own, (32, 24))
    assert (found.schedule_file("c"), found.statistics_folder) == ("sizes/32x24/schedules/c.json", "sizes/32x24/statistics/onnxruntime")
    assert [one.manifest.model.image_size for one in found.at_sizes] == [(16, 8), (32, 24)]
    with pytest.raises(UsageError, match="found:    8x16\n  expected: 16x8 or 32x24"):
        Bundle.open(tmp_path, (8, 16))


def test_sizes_differ_and_have_the_same_precisions(tmp_path: Path) -> None:
    for sizes, problem in (
        ([at_size([16, 8])], "once"),
        ([{**at_size([9, 9]), "precisions": {"w8a8": at_size([9, 9])["precisions"]["fp32"]}}], "another"),
    ):
        assert problem in refusal(write(tmp_path, {**MANIFEST, "sizes": sizes}))


@pytest.mark.parametrize("bounds", [[100.0, 200.0], [100.0, 100.0], [0.0], [-1.0]])
def test_bounds_of_groups_fall_and_are_positive(tmp_path: Path, bounds: list[float]) -> None:
    (record,) = MANIFEST["precisions"].values()
    groups = [{"below": below, "graph": GRAPH, "pieces": None} for below in bounds]
    assert "groups" in refusal(write(tmp_path, {**MANIFEST, "precisions": {"fp32": {**record, "groups": groups}}}))


def test_noise_schedule_is_the_model_s(tmp_path: Path) -> None:
    schedule = Bundle.open(write(tmp_path, manifest())).manifest.model.noise_schedule
    assert (schedule.num_train_timesteps, schedule.clip, schedule.prediction_type) == (500, None, "v_prediction")


def test_unconditional_model_has_no_conditioning(tmp_path: Path) -> None:
    model = {**MANIFEST["model"], "conditioning": None}
    assert Bundle.open(write(tmp_path, manifest(model=model))).manifest.model.conditioning is None


def test_file_is_found_once_its_hash_is_right(tmp_path: Path) -> None:
    bundle = Bundle.open(write(tmp_path, MANIFEST))
    (tmp_path / GRAPH).parent.mkdir(parents=True)
    (tmp_path / GRAPH).touch()
    assert bundle.path(GRAPH) == tmp_path / GRAPH


def test_hash_is_computed_once(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny.folder)
    first = bundle.path(GRAPH)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    assert bundle.path(GRAPH) == first


def test_file_that_is_exchanged_is_hashed_again(own_tiny: TinyBundle) -> None:
    bundle = Bundle.open(own_tiny.folder)
    path = bundle.path(GRAPH)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)
    with pytest.raises(BundleError, match="changed or damaged"):
        bundle.path(GRAPH)


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"?", lambda content: content[:-7]], ids=["same size", "truncated"])
def test_changed_file_is_refused_with_both_hashes(own_tiny: TinyBundle, change: Any) -> None:
    recorded = own_tiny.manifest()["files"][GRAPH]["sha256"]
    own_tiny.edit(GRAPH, change)
    with pytest.raises(BundleError, match="changed or damaged") as caught:
        Bundle.open(own_tiny.folder).path(GRAPH)
    message = str(caught.value)
    assert recorded in message.split("expected:")[1]
    assert recorded not in message.split("expected:")[0]
    assert str(own_tiny.folder / GRAPH) in message


def test_missing_file_is_refused(own_tiny: TinyBundle) -> None:
    (own_tiny.folder / GRAPH).unlink()
    with pytest.raises(BundleError, match=r"(?s)missing.*fp32\.onnx"):
        Bundle.open(own_tiny.folder).path(GRAPH)


def test_whole_bundle_passes_with_every_file_hashed_once(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny.folder)
    bundle.check_files()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
    for name in bundle.manifest.files:
        bundle.path(name)


def test_sizes_are_checked_before_any_hash(own_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_tiny.folder / [*own_tiny.manifest()["files"]][-1]).unlink()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed"))
    with pytest.raises(BundleError, match="is missing"):
        Bundle.open(own_tiny.folder).check_files()


def test_link_out_of_the_bundle_is_refused_even_to_the_right_bytes(own_tiny: TinyBundle) -> None:
    outside = own_tiny.folder.parent / "outside.onnx"
    (own_tiny.folder / GRAPH).rename(outside)
    (own_tiny.folder / GRAPH).symlink_to(outside)
    bundle = Bundle.open(own_tiny.folder)
    for use in (bundle.path, bundle.read):
        with pytest.raises(BundleError, match=rf"(?s)lies outside its folder.*{GRAPH} leads to {outside}\n"):
            use(GRAPH)


def test_bundle_may_itself_be_reached_by_a_link(tiny: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny.folder)
    assert Bundle.open(tmp_path / "link").path(GRAPH).is_file()


def test_file_that_the_manifest_does_not_list_is_refused(own_tiny: TinyBundle) -> None:
    (own_tiny.folder / "extra.onnx").touch()
    with pytest.raises(BundleError, match=r"(?s)does not list.*extra\.onnx"):
        Bundle.open(own_tiny.folder).path("extra.onnx")


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "graphs/../../outside.onnx", "graphs\\fp32.onnx", "./x", "a//b", "."])
def test_path_that_leaves_the_bundle_or_is_not_plain_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(write(tmp_path, manifest(files={name: {"sha256": EMPTY_SHA256, "bytes": 0}})))
    assert f"{name!r} is not a plain relative path inside the bundle" in message


def test_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert f"This is not a bundle.\n  found:    no {folder}/manifest.json" in refusal(folder, UsageError)


def test_patches_of_guidance_are_whole_and_old_bundles_have_none(tmp_path: Path) -> None:
    model = {name: value for name, value in MANIFEST["model"].items() if name != "guidance_patch"}
    assert Bundle.open(write(tmp_path, {**MANIFEST, "model": model})).manifest.model.guidance_patch is None
    assert Bundle.open(write(tmp_path, {**MANIFEST, "model": {**model, "guidance_patch": 4}})).manifest.model.guidance_patch == 4
    assert "no whole patches of 3" in refusal(write(tmp_path, {**MANIFEST, "model": {**model, "guidance_patch": 3}}))


@pytest.mark.parametrize("version", [7, 0, "1", True, None])
def test_other_schema_version_is_told_apart_from_damage(tmp_path: Path, version: object) -> None:
    message = refusal(write(tmp_path, manifest(schema_version=version, files="of the future")))
    assert "schema version" in message
    assert f"{version!r}\n  expected: 1 or 2 or 3 or 4 or 5 or 6\n" in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{", "is not JSON"), (b"\xff\xfe{}", "is not JSON"), (b"[" * 100_000, "is nested too deeply"), (b"[1]", "is not a JSON object")],
)
def test_manifest_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert f"manifest.json {complaint}" in refusal(tmp_path)


def test_manifest_that_was_changed_is_refused_though_it_is_a_manifest_still(own_tiny: TinyBundle) -> None:
    own_tiny.edit("manifest.json", lambda content: content.replace(b'"null_class": 3', b'"null_class": 2'))
    assert "changed or damaged.\n  found:    " in refusal(own_tiny.folder)
    own_tiny.edit_json("manifest.json", lambda _: None)  # which makes the digest right
    conditioning = Bundle.open(own_tiny.folder).manifest.model.conditioning
    assert conditioning is not None
    assert conditioning.null_class == 2


def test_text_of_the_manifest_may_be_laid_out_anew(own_tiny: TinyBundle) -> None:
    before = Bundle.open(own_tiny.folder).manifest
    own_tiny.edit("manifest.json", lambda content: json.dumps(json.loads(content), indent=7, sort_keys=True).encode())
    assert Bundle.open(own_tiny.folder).manifest == before


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"guidance": -1}, "guidance"),
        ({"parameterization": "score"}, "parameterization"),
        ({"surprise": 1}, "surprise"),
        ({"files": {GRAPH: {"sha256": "abc", "bytes": 0}}}, f"files.{GRAPH}.sha256"),
        ({"files": {GRAPH: {"sha256": EMPTY_SHA256, "bytes": -1}}}, f"files.{GRAPH}.bytes"),
        ({"model": {**MANIFEST["model"], "sample_shape": []}}, "model.sample_shape"),
    ],
)
def test_manifest_that_breaks_the_contract_is_refused_with_the_place(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    assert f"manifest.json: {where}: " in refusal(write(tmp_path, manifest(**changes)))


def test_schedule_is_found_by_name(tiny: TinyBundle) -> None:
    assert len(Bundle.open(tiny.folder).schedule("default").steps) == 4


@pytest.mark.parametrize("name", ["fast", "../schedules/default", ""])
def test_unknown_schedule_is_an_error_of_usage_that_names_the_known_ones(tiny: TinyBundle, name: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)no such schedule.*expected: default") as caught:
        Bundle.open(tiny.folder).schedule(name)
    assert caught.value.exit_code == 2
