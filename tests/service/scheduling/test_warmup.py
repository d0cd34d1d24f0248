"""Tests of the warm-up before the first request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service import standin
from tests.service.standin import bundle, serving
from tests.service.standin_dual import MOST_TOKENS, WORKLOAD, dual_bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.bundle import schedule
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.inference.levels import Selector
from tokenfold.inference.work import Work
from tokenfold.service.app import create_app
from tokenfold.service.core import Core
from tokenfold.service.scheduling import warmup
from tokenfold.service.scheduling.catalog import ServedModel


@pytest.mark.parametrize("write", [bundle, pair_bundle, dual_bundle])
def test_plans_of_every_text_length_are_computed_at_warm_up(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    model = ServedModel(Bundle.open(write(tmp_path / "a")))
    schedule._savings.cache_clear()
    warmup.plan_ahead(model)
    misses = schedule._savings.cache_info().misses
    assert misses
    choice = model.levels.choose(Selector(reduction=0.37), next(iter(model.tasks)))
    if (nominal := model.levels.nominal) is not None:
        for text in range(1, nominal.text + 1):
            model.levels.fit(choice, nominal._replace(text=text))
    assert schedule._savings.cache_info().misses == misses


@pytest.mark.parametrize(("padded", "lengths"), [(False, (8, MOST_TOKENS)), (True, (MOST_TOKENS,))])
def test_texts_without_images_are_timed_at_warm_up(
    padded: bool, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    dual_bundle(tmp_path / "a", padded=padded)
    app = create_app(standin.settings(tmp_path))
    with serving(app):
        core: Core = app.state.core
        (model,) = core.catalog
        for tokens in lengths:
            assert model.costs.seconds((Work.of_text(WORKLOAD, tokens),), "read") > 0
        assert model.costs.seconds((model.levels.choose(Selector(), "embed").work,)) > 0


def test_vectors_of_another_width_than_the_manifests_fail_the_start(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a", width=7)
    app = create_app(standin.settings(tmp_path))
    with serving(app):
        failed = app.state.core.failed
    assert isinstance(failed, BundleError)
    assert "vectors of 20 numbers; its manifest says 7" in str(failed)
