"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import settings

# Read when torch is imported: on networks this small its threads wait for each other three times
# as long as they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# It imports its parts when they are first used, in a server's thread too; and pytest parses them,
# for anyio has a plugin of it. CPython before 3.11.8 cannot parse in two threads (gh-106905).
for _name in dir(anyio):
    getattr(anyio, _name)

# Examples are counted, not timed: a loaded machine is no failure.
settings.register_profile("tokenfold", deadline=None, max_examples=100)
settings.load_profile("tokenfold")


@pytest.fixture(scope="session", autouse=True)
def no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server that is not told where to keep galleries and engines keeps them in the home
    directory: not in that of whoever runs the tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("home")))
        yield
