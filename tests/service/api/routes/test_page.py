"""Tests of the demo page: it is complete and loads nothing from other hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from tests.service import standin
from tests.service.standin import Remote, bundle, serving
from tokenfold.bundle.tasks import Task
from tokenfold.service.api.routes.page import FOLDER
from tokenfold.service.api.schemas.galleries import SearchRequest
from tokenfold.service.api.schemas.pairs import (
    EntailRequest,
    MatchRequest,
    ReasonRequest,
    VqaRequest,
)
from tokenfold.service.app import create_app

NODE = shutil.which("node") or ""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = bundle(tmp_path_factory.mktemp("bundles") / "a")
    with serving(create_app(standin.settings(root))) as remote:
        yield remote


def test_every_link_of_the_page_is_served(client: Remote) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:href|src)="(/[^"]*)"', page.text)
    assert "/page/page.js" in links
    assert "/docs" not in links  # its scripts come from another host
    for link in links:
        assert client.get(link).status_code == 200, link


def test_the_tasks_of_the_page_are_those_of_the_api() -> None:
    script = (FOLDER / "tasks.js").read_text()
    tasks = re.findall(r"^  (\w+): \{$", script, re.MULTILINE)
    # The page does not show vectors; it uses them to search.
    assert tasks == [task for task in get_args(Task) if task != "embed"]
    requests: dict[str, type[BaseModel]] = {
        "vqa": VqaRequest, "entail": EntailRequest, "reason": ReasonRequest, "match": MatchRequest
    }  # fmt: skip
    for task, request in requests.items():
        field = re.search(rf'^  {task}: .*?field: "(\w+)"', script, re.DOTALL | re.MULTILINE)
        assert field is not None
        assert field[1] in request.model_fields


def test_the_page_loads_nothing_from_other_hosts() -> None:
    for file in FOLDER.iterdir():
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", file.read_text()), file


def test_every_element_named_in_a_script_exists() -> None:
    html = (FOLDER / "index.html").read_text()
    for script in FOLDER.glob("*.js"):
        for name in set(re.findall(r'\$\("(\w+)"\)', script.read_text())):
            assert f'id="{name}"' in html, name


def test_the_search_fields_of_the_page_are_those_of_the_api() -> None:
    script = (FOLDER / "search.js").read_text()
    sent = re.findall(r'\["(\w+)", [$qN]', script) + re.findall(r'append\("(\w+)"', script)
    assert {"text", "id", "image", "rerank", "reduction", "top_k"} == set(sent)
    assert set(sent) <= set(SearchRequest.model_fields)


def test_every_imported_script_exists() -> None:
    for script in FOLDER.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (FOLDER / name).is_file(), name


def test_the_slider_takes_fractions_of_a_percent() -> None:
    html = (FOLDER / "index.html").read_text()
    slider = re.search(r'<input[^>]* id="reduction"[^>]*>', html)
    assert slider is not None
    # Otherwise the browser rounds the value set by a level's button, and no level matches.
    assert 'step="any"' in slider[0]


@pytest.mark.skipif(not NODE, reason="node is not installed")
@pytest.mark.parametrize(
    ("name", "curl"),
    [
        ("frog.png", "frog.png"),
        ("my frog.png", '"my frog.png"'),
        ("it's; $(rm x) `y`.png", '"it\'s; $(rm x) `y`.png"'),
        ('a"b\\c,d.png', '"a\\"b\\\\c,d.png"'),
        ("@x\ny", '"@x\ny"'),
    ],
)
def test_file_names_are_escaped_for_curl(name: str, curl: str) -> None:
    script = (FOLDER / "curl.js").read_text()
    functions = re.findall(
        r"^export (function (?:shell|field)\(.*?^})", script, re.DOTALL | re.MULTILINE
    )
    code = "\n".join(functions) + "\nconsole.log(shell(`image=@${field(process.argv[1])}`))"
    word = subprocess.check_output([NODE, "-e", code, "--", name], text=True).removesuffix("\n")
    printed = subprocess.check_output(["sh", "-c", f"printf %s {word}"], text=True)
    assert printed == f"image=@{curl}"


def test_other_files_are_not_served(client: Remote) -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/missing.js"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
