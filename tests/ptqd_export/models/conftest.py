"""Tiny random text pipelines, each written once; not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ptqd_export.models import tiny_text


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sd1(tmp_path_factory.mktemp("sd1") / "model")


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sd2(tmp_path_factory.mktemp("sd2") / "model")


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sdxl(tmp_path_factory.mktemp("sdxl") / "model")
