"""Which networks of the table run in pipelines; how they are called there is proved in whole pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from ptqd_export.diffusers.pipeline_call import PipelineCall
from ptqd_export.models.diffusers_models.transformers.family_table import TRANSFORMERS
from tests.ptqd_export.models.tiny_transformers import PIPED, TINY

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def test_families_that_run_in_pipelines_are_those_that_are_proved_there() -> None:
    assert {name for name, family in TRANSFORMERS.items() if family.in_pipelines} == {TINY[name].network[0] for name in PIPED}


@pytest.mark.parametrize("name", [name for name, family in TRANSFORMERS.items() if not family.in_pipelines])
def test_other_families_are_refused_by_name(name: str, tiny: TinyBundle) -> None:
    model = Bundle.open(tiny.folder).manifest.model.model_copy(update={"family": f"diffusers {name}"})
    with pytest.raises(UsageError, match=rf"(?s)do not run in diffusers' pipelines.*{name}.*ptqd-run sample"):
        PipelineCall.of(model)
