"""The site that `make docs` builds: strict, and without resources of other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import TOP

pytestmark = pytest.mark.more


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(build, capture_output=True, text=True, cwd=TOP)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    for page in (TOP / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file(), page.name


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    loading = re.compile(r"<(?:script|img|link|iframe)[^>]* (?:src|href)=\"?(https?:)?//")
    for page in site.glob("*.html"):
        assert not loading.search(page.read_text()), page.name
