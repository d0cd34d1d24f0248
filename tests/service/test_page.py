"""The page: it is there, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from service.app import create_app
from service.routes.page import FOLDER
from tests.service import standin
from tests.service.standin import Remote, bundle, serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = bundle(tmp_path_factory.mktemp("bundles") / "a")
    with serving(create_app(standin.settings(root))) as remote:
        yield remote


def test_what_it_refers_to_is_there(client: Remote) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:href|src)="(/[^"]*)"', page.text)
    assert "/page/page.js" in links
    for link in links:
        assert client.get(link).status_code == 200, link


def test_nothing_comes_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", file.read_text()), file


def test_every_element_that_the_script_names_exists() -> None:
    html = (FOLDER / "index.html").read_text()
    script = (FOLDER / "page.js").read_text()
    for name in set(re.findall(r'\$\("(\w+)"\)', script)):
        assert f'id="{name}"' in html, name


def test_other_files_are_not_served(client: Remote) -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/missing.js"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
