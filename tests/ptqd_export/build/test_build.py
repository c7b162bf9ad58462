from __future__ import annotations
from pathlib import Path


def test_a(class_build):
    assert class_build.stage("trace")


def test_b(cross_build):
    assert cross_build.stage("trace")
