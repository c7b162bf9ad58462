"""Images read from an archive a few at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.apps.evaluate import image_archive
from engines.apps.evaluate.image_archive import ImageArchive
from engines.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(23, 3, 5, 4), dtype=np.uint8)
FLOATS = (PIXELS / np.float32(127.5) - 1).astype(np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("stored", [PIXELS, FLOATS, FLOATS.astype(np.float64), FLOATS.astype(">f4")])
def test_batches_are_the_images_in_order(tmp_path: Path, save: object, stored: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    assert callable(save)
    save(tmp_path / "images.npz", samples=stored, indices=np.arange(23))
    images = ImageArchive.open(tmp_path / "images.npz")
    assert (images.count, images.shape) == (23, (3, 5, 4))
    batches = list(images.batches(10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(batches), FLOATS, atol=1e-6)


def test_images_of_latent_models_are_read_and_not_their_latents(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", samples=np.zeros((23, 4, 2, 2), np.float32), images=PIXELS)
    (batch,) = ImageArchive.open(tmp_path / "samples.npz").batches(23)
    np.testing.assert_allclose(batch, FLOATS, atol=1e-6)


@pytest.mark.parametrize("stored", [FLOATS[0], PIXELS.astype(np.int64), np.asfortranarray(FLOATS), np.array([["text"]])])
def test_array_of_another_kind_is_an_error_of_usage(tmp_path: Path, stored: object) -> None:
    np.savez(tmp_path / "images.npz", samples=np.asarray(stored))
    with pytest.raises(UsageError, match="The reference's images have an unsupported shape or dtype"):
        ImageArchive.open(tmp_path / "images.npz")


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", samples=np.array([{}], dtype=object))
    with pytest.raises(UsageError):
        ImageArchive.open(tmp_path / "images.npz")


@pytest.mark.parametrize(("values", "message"), [(255 * FLOATS, "in the wrong units"), (np.full_like(FLOATS, np.nan), "contain NaN")])
def test_other_units_are_an_error_of_usage(tmp_path: Path, values: object, message: str) -> None:
    np.savez(tmp_path / "images.npz", samples=np.asarray(values))
    with pytest.raises(UsageError, match=message):
        list(ImageArchive.open(tmp_path / "images.npz").batches(8))


def test_units_are_known_from_the_first_image_that_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_archive, "BATCH", 8)
    white, black = np.ones_like(FLOATS[:16]), -np.ones_like(FLOATS[:1])
    for stored in (
        PIXELS,
        FLOATS,
        0.1 * FLOATS,
        np.concatenate([white, black]),
        np.repeat(black, 9, 0),
        255 * (PIXELS > 127).astype(np.uint8),
    ):
        np.savez(tmp_path / "images.npz", images=stored)
        ImageArchive.open(tmp_path / "images.npz").check_units()


@pytest.mark.parametrize("undershoot", [0, 0.1])
@pytest.mark.parametrize("stored", [PIXELS / 255, PIXELS / np.float32(255), np.zeros_like(FLOATS), PIXELS // 128])
def test_images_from_0_to_1_are_an_error_of_usage(tmp_path: Path, stored: object, undershoot: float) -> None:
    values = np.asarray(stored)
    np.savez(tmp_path / "images.npz", images=values if values.dtype == np.uint8 else values * (1 + undershoot) - undershoot * values.max())
    with pytest.raises(UsageError, match=r"(?s)in the wrong units.*expected: floats in \[-1, 1\].*\[0, 1\]"):
        ImageArchive.open(tmp_path / "images.npz").check_units()


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_at_the_end_are_an_error_of_usage(tmp_path: Path, channels: int) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((5, 8, 8, channels), np.uint8))
    with pytest.raises(UsageError, match=rf"(?s)found: .*\[5, 8, 8, {channels}\]\n.*expected: images \[n, 1 or 3, height, width\]"):
        ImageArchive.open(tmp_path / "images.npz")


def test_archive_without_arrays_is_told_how_to_be_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz")
    with pytest.raises(UsageError, match=r"(?s)neither images nor statistics.*no arrays.*mend: .*images=images"):
        ImageArchive.open(tmp_path / "images.npz")


def test_missing_file_text_and_other_arrays_are_errors_of_usage(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", x_train=PIXELS)
    for name, message in (("none", "cannot be read"), ("text", "cannot be read"), ("other", "holds neither images nor statistics")):
        with pytest.raises(UsageError, match=message):
            ImageArchive.open(tmp_path / f"{name}.npz")


def test_damaged_archive_is_an_error_of_usage(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, samples=PIXELS)
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        list(ImageArchive.open(path).batches(8))
