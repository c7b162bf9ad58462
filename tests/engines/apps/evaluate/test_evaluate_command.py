"""`ptqd-run evaluate` and `ptqd-run reference` as their users see them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines.apps.evaluate.evaluate_command import EvaluateRequest, evaluate_bundle
from engines.apps.evaluate.extractor import SMALL, Extractor
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scores import SampleScores
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.cli import main
from engines.networks.chain_choice import ChainChoice

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.engines.apps.evaluate.conftest import TinyExtractor

NUM = 60
PAIRED = {"pooled_psnr", "median_psnr", "ssim", "relative_l2"}
NAMES = ["frechet_distance", "spatial_frechet_distance", "inception_score", "precision", "recall", "mean", "variance"]
MIXTURE = (0.5, -1.0, 0.25, 2.0)
"""Of the channels, in the decoder of `tiny_decoded`."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, samples=(0.5 * np.random.default_rng(0).normal(size=(120, 1, 8, 8))).astype(np.float32))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def evaluate(bundle: TinyBundle, reference: Path, extractor: Path, *options: object, num: int = NUM) -> Result:
    return run("evaluate", bundle.folder, "--num", num, "--reference", reference, "--features", extractor, *options)


@pytest.fixture(scope="module")
def written(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, dict[str, Any]]:
    """Two seeds from 3 on, w4a8 throughout, classes in turn."""
    path = tmp_path_factory.mktemp("json") / "new" / "figures.json"
    options = ["--seed", 3, "--seeds", 2, "--precision", "w4a8", "--classes", "all", "--batch-size", 25, "--json", path]
    result = evaluate(tiny, images, extractor_file, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    return result, json.loads(path.read_text())


def test_the_file_says_what_was_evaluated(written: tuple[Result, dict[str, Any]], extractor_file: Path) -> None:
    record = {key: value for key, value in written[1].items() if key not in ("figures", "warnings")}
    assert record == {
        "schema_version": 2,
        "schedule": "default",
        "full_precision": "fp32",
        "precision": "w4a8",
        "precision_steps": {"w4a8": 4},
        "correction": "on",
        "guidance": 1.5,
        "loras": [],
        "num": NUM,
        "seeds": [3, 4],
        "classes": "all",
        "reference_count": 120,
        "extractor": Extractor(extractor_file, threads=1).digest,
        "extractor_name": None,
        "feature_dimension": 4,
        "prompts": None,
        "reference_seed": None,
        "unavailable": {},
        "size": None,
    }


def test_figures_of_both_chains_and_their_paired_difference(written: tuple[Result, dict[str, Any]]) -> None:
    figures = written[1]["figures"]
    assert list(figures) == [*NAMES, "pooled_psnr", "median_psnr", "ssim", "relative_l2"]
    for name, figure in figures.items():
        quantized = figure["quantized"]
        assert set(quantized) == {"mean", "deviation", "interval", "values"}
        pooled = -10 * np.log10(np.mean(10 ** (-np.array(quantized["values"]) / 10)))
        assert quantized["mean"] == pytest.approx(pooled if name == "pooled_psnr" else np.mean(quantized["values"]))
        assert quantized["deviation"] == pytest.approx(np.std(quantized["values"], ddof=1))
        if name in PAIRED:
            assert figure["full_precision"] is figure["difference"] is None
            continue
        expected = np.subtract(quantized["values"], figure["full_precision"]["values"])
        np.testing.assert_allclose(figure["difference"]["values"], expected)
        low, high = figure["difference"]["interval"]
        assert low <= figure["difference"]["mean"] <= high
    assert figures["frechet_distance"]["difference"]["mean"] != 0


def test_figures_are_those_of_the_samples_that_sample_writes(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, written: tuple[Result, dict[str, Any]]
) -> None:
    states = {}
    for precision, correction in (("fp32", "off"), ("w4a8", "on")):
        folder = tmp_path / precision
        options = [
            "--seed",
            4,
            "--classes",
            "all",
            "--precision",
            precision,
            "--correction",
            correction,
            "--format",
            "npz",
            "--output",
            folder,
        ]
        assert run("sample", tiny.folder, "--num", NUM, *options).exit_code == 0
        with np.load(folder / "samples.npz") as archive:
            states[precision] = archive["samples"]
    extractor = Extractor(extractor_file, threads=1)
    reference = Reference.load(images, extractor, (1, 8, 8))
    scores = SampleScores(NUM, reference, extractor)
    scores.add(states["w4a8"], states["fp32"])
    for name, estimate in scores.estimates().items():
        assert written[1]["figures"][name]["quantized"]["values"][1] == pytest.approx(estimate.value, rel=1e-3), name


def test_the_output_shows_full_precision_first_then_the_table(written: tuple[Result, dict[str, Any]]) -> None:
    lines = written[0].stdout.splitlines()
    starts = ["fp32, seed 3: frechet distance ", "w4a8, seed 3: ", "fp32, seed 4: ", "w4a8, seed 4: "]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=False)] == [True] * 4
    assert "psnr" not in lines[0]
    assert "psnr" in lines[1]
    table = "\n".join(lines[4:])
    for words in ("60 samples per seed, 2 seeds, guidance 1.5", "w4a8, correction on", "95 % interval", "relative l2", "steps: 4 w4a8"):
        assert words in table


def test_singular_covariances_are_allowed_and_warned_of(tiny: TinyBundle, network: TinyExtractor, images: Path, tmp_path: Path) -> None:
    W, V = (np.random.default_rng(1).normal(size=size).astype(np.float32) / np.float32(8) for size in ((64, 60), (60, 5)))
    wide = type(network)(W, V)
    result = evaluate(tiny, images, wide.save(tmp_path / "e.onnx", outputs=("features",)))
    assert result.exit_code == 0
    assert "warning: 60 samples do not span 60 features: their covariance is singular" in result.stdout


def test_full_precision_against_itself_is_no_difference(tiny: TinyBundle, images: Path, extractor_file: Path) -> None:
    request = EvaluateRequest(tiny.folder, images, extractor_file, 50, chain=ChainChoice(precision="fp32", correction="off"))
    figures = evaluate_bundle(request).figures
    for name in NAMES:
        difference = figures[name].difference
        assert difference is not None
        assert (difference.mean, difference.interval) == (0, (0, 0))
    for name in ("pooled_psnr", "median_psnr"):
        assert figures[name].quantized.values == (math.inf,)


def test_unconditional_color_model_with_statistics_of_another_program(
    tiny_unconditional: TinyBundle, network: TinyExtractor, tmp_path: Path
) -> None:
    """Three channels into an extractor of 64 inputs would not fit; of 192 they do."""
    color = type(network)(W=(np.random.default_rng(1).normal(size=(192, 4)) / 8).astype(np.float32))
    path = color.save(tmp_path / "e.onnx", outputs=("features",), shape=("N", 3, 8, 8))
    np.savez(tmp_path / "fid.npz", mu=np.zeros(4), sigma=np.eye(4))
    result = evaluate(tiny_unconditional, tmp_path / "fid.npz", path, "--json", tmp_path / "out.json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads((tmp_path / "out.json").read_text())
    assert list(record["figures"]) == ["frechet_distance", "mean", "variance", "pooled_psnr", "median_psnr", "ssim", "relative_l2"]
    assert list(record["unavailable"]) == ["spatial_frechet_distance", "inception_score", "precision", "recall"]
    assert (record["classes"], record["reference_count"]) == (None, None)
    assert "recall is not available: the reference holds no features of individual images" in result.stdout


def test_a_first_look_needs_neither_extractor_nor_reference(tiny: TinyBundle, tmp_path: Path) -> None:
    path = tmp_path / "look.json"
    done = run("evaluate", tiny.folder, "--num", NUM, "--seed", 3, "--seeds", 2, "--precision", "w4a8", "--classes", "all", "--json", path)
    assert (done.exit_code, done.stderr) == (0, "")
    record = json.loads(path.read_text())
    assert (record["extractor_name"], record["reference_seed"], record["reference_count"]) == ("ptqd-small-1", 5, NUM)
    named = {name: figure["extractor"] for name, figure in record["figures"].items()}
    assert named == dict.fromkeys(("frechet_distance", "precision", "recall"), "ptqd-small-1") | dict.fromkeys(
        ("mean", "variance", *PAIRED)
    )
    assert done.stdout.startswith("fp32, seed 3: frechet distance (ptqd-small-1) ")
    for words in (
        "reference: full-precision samples of seed 5",
        "warning: figures of ptqd-small-1 compare only with each other, not with published FID",
    ):
        assert words in done.stdout


def test_the_models_own_reference_is_what_sample_writes(tiny: TinyBundle, tmp_path: Path) -> None:
    sampled = ["--seed", 1, "--classes", "all", "--precision", "fp32", "--correction", "off", "--format", "npz", "--output", tmp_path]
    assert run("sample", tiny.folder, "--num", NUM, *sampled).exit_code == 0
    options = {"classes": "all", "chain": ChainChoice(precision="w4a8")}
    own, given = (
        evaluate_bundle(EvaluateRequest(tiny.folder, reference, SMALL, NUM, **options)).figures["frechet_distance"]  # type: ignore[arg-type]
        for reference in (None, tmp_path / "samples.npz")
    )
    assert own.quantized.mean == pytest.approx(given.quantized.mean, rel=1e-4)
    assert own.quantized.mean > 1


def test_statistics_made_once_judge_like_the_images(tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path) -> None:
    made = run("reference", images, "--features", extractor_file, "--output", tmp_path / "statistics.npz")
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.stdout == f"120 images, 4 features; see {tmp_path / 'statistics.npz'}\n"
    one, other = (evaluate_bundle(EvaluateRequest(tiny.folder, path, extractor_file, 50)) for path in (images, tmp_path / "statistics.npz"))
    for name in NAMES:
        assert one.figures[name].quantized.mean == pytest.approx(other.figures[name].quantized.mean, rel=1e-5), name


def wrong_requests(folder: Path) -> Iterator[tuple[list[object], str]]:
    np.savez(folder / "color.npz", samples=np.zeros((9, 3, 8, 8), np.float32))
    yield ["--reference", folder / "color.npz"], "The reference's images do not have the shape of the samples."
    yield ["--reference", folder / "none.npz"], "The reference cannot be read."
    yield ["--features", folder / "none.onnx"], "There is no feature extractor."
    yield ["--num", 49], "There are too few samples to compare."
    yield ["--precision", "w2a2"], "The schedule has no such precision."
    yield ["--schedule", "fast"], "The bundle has no such schedule."
    yield ["--classes", "7"], "A class is out of range."
    yield ["--guidance", 2], "The corrections were fitted at another guidance scale."
    yield ["--seed", -1], "The seed is out of range."


def test_what_does_not_fit_is_one_message_before_anything_is_sampled(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.chain.sampling.Chain.sample", lambda *_: pytest.fail("samples were taken"))
    for options, message in wrong_requests(tmp_path):
        result = evaluate(tiny, images, extractor_file, *options, "--json", tmp_path / "out" / "figures.json")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {message}\n  found:    ")
        assert result.stderr.count("error:") == 1
        assert list((tmp_path / "out").iterdir()) == []


def test_samples_that_the_extractor_does_not_take_are_an_error_of_usage(
    tiny_latent: TinyBundle, images: Path, extractor_file: Path
) -> None:
    result = evaluate(tiny_latent, images, extractor_file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: The feature extractor does not take the samples.\n  found:    images of shape [4, 8, 8]\n")


def test_a_run_that_fails_leaves_no_file(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engines.apps.evaluate.scores.SampleScores.estimates", fail)
    result = evaluate(tiny, images, extractor_file, "--json", tmp_path / "figures.json")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_exits_3(tiny: TinyBundle, images: Path, extractor_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    result = evaluate(tiny, images, extractor_file)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: ONNX Runtime is not installed.")


def test_rows_left_out_are_those_of_the_seed(tiny: TinyBundle) -> None:
    """What `sample` draws, `evaluate` draws: the rows come from (seed, number) for both."""
    from engines.apps.evaluate.evaluate_command import _seeded_samples

    seeded = _seeded_samples(EvaluateRequest(tiny.folder, Path(), Path(), 50), Bundle.open(tiny.folder), seed=9)
    np.testing.assert_array_equal(seeded.rows, NoiseSource(9, (1, 8, 8)).row(np.arange(50), 3))


def test_latent_models_are_judged_by_their_images(tiny_decoded: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = evaluate(tiny_decoded, images, extractor_file, "--seed", 3, "--json", path)
    assert (result.exit_code, result.stderr) == (0, "")
    bundle = Bundle.open(tiny_decoded.folder)
    noise, samples = NoiseSource(3, bundle.manifest.model.sample_shape), np.arange(NUM)
    states = ChainChoice(precision="fp32", correction="off").open(bundle, NUM).sample(noise, samples, noise.row(samples, 3))
    mean = json.loads(path.read_text())["figures"]["mean"]["full_precision"]["mean"]
    assert mean == pytest.approx(float(np.tanh(np.einsum("nchw,c->nhw", states.astype(np.float64), MIXTURE)).mean()), abs=1e-4)
