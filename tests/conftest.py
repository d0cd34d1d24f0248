"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import settings

# torch reads this when it is imported. On small networks, its threads would wait for each other
# three times as long as they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# anyio imports its submodules at first use, also in a server's thread, and pytest parses them,
# because anyio has a pytest plugin. CPython before 3.11.8 cannot parse in two threads (gh-106905).
for _name in dir(anyio):
    getattr(anyio, _name)

# No deadline per example, so that a busy machine causes no failure.
settings.register_profile("tokenfold", deadline=None, max_examples=100)
settings.load_profile("tokenfold")


@pytest.fixture(scope="session", autouse=True)
def no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep servers from writing galleries and engines to the user's home directory."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("home")))
        yield
