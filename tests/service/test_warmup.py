"""What is done before the first request, so that no request has to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import Bundle
from models.reduction import schedule
from service import warmup
from service.catalog import Model
from service.levels import Selector
from tests.service.standin import bundle
from tests.service.standin_pairs import pair_bundle


@pytest.mark.parametrize("write", [bundle, pair_bundle])
def test_no_request_looks_for_the_plans_of_a_length(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    model = Model(Bundle.open(write(tmp_path / "a")))
    schedule._family.cache_clear()
    warmup.plan_ahead(model)
    searched = schedule._family.cache_info().misses
    assert searched
    choice = model.levels.choose(Selector(reduction=0.37), next(iter(model.tasks)))
    if (nominal := model.levels.nominal) is not None:
        for text in range(1, nominal.text + 1):
            model.levels.fit(choice, nominal._replace(text=text))
    assert schedule._family.cache_info().misses == searched
