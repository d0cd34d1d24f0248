"""Fixtures shared by the tests of the API."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service import standin
from tests.service.standin import Remote, bundle, serving
from tokenfold.service.app import create_app


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours", work=20)
    bundle(root / "b", name="plain", profile=False, levels={"exact": 0.0, "half": 0.5})
    return root


@pytest.fixture(scope="package")
def client(bundles: Path) -> Iterator[Remote]:
    with serving(create_app(standin.settings(bundles, max_items=4))) as remote:
        yield remote


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor
