"""Every code block of README.md, docs/ and examples/ runs, or says why not and is checked."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.docs.commands import commands, unknown
from tests.docs.pages import ANSWER, PAGES, REASONS, SLOW, TOP, Block, blocks, name
from tests.docs.server import ARGUMENTS, sample_server

ADDRESS = "localhost:8000"
TOLERANCE = 0.03  # of scores: kernels differ between processors
# Entries of the repository that blocks refer to; what blocks write goes to a temporary folder.
LINKED = ("examples", "models")

each_page = pytest.mark.parametrize("page", PAGES, ids=name)
ALL = [block for page in PAGES for block in blocks(page)]
SLOW_PAGES = sorted({block.page for block in ALL if block.mark == SLOW})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with sample_server() as started:
        yield started


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the commands of the blocks; curl fails where the server returns an error."""
    folder = tmp_path_factory.mktemp("bin")
    python = f"exec {sys.executable}"
    for program, line in {
        "tokenfold": f'{python} -m tokenfold "$@"',
        "python": f'{python} "$@"',
        "curl": 'exec /usr/bin/curl --fail-with-body "$@"',
    }.items():
        (folder / program).write_text(f"#!/bin/sh\n{line}\n")
        (folder / program).chmod(0o755)
    return folder


class Reader:
    """A reader who follows a page from top to bottom, in one folder."""

    def __init__(self, folder: Path, programs: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        path = f"{programs}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "PYTHONPATH": str(TOP)}
        for entry in LINKED:
            (folder / entry).symlink_to(TOP / entry)

    def run(self, *line: str) -> str:
        """Run a program and return its output; fail with the output if the program fails."""
        shown = subprocess.run(
            line, capture_output=True, text=True, cwd=self.folder, env=self.environment, timeout=240
        )
        assert shown.returncode == 0, f"{shown.stdout[-2000:]}\n{shown.stderr[-4000:]}"
        return shown.stdout

    def follow(self, block: Block) -> str:
        """Run a shell block with the server's address."""
        text = block.text.replace(ADDRESS, self.address)
        try:
            return self.run("bash", "-euo", "pipefail", "-c", text)
        except AssertionError as error:
            raise AssertionError(f"{block.place}\n{error}") from None


@each_page
def test_every_block_runs(page: Path, tmp_path: Path, programs: Path, address: str) -> None:
    follow(page, Reader(tmp_path, programs, address), slow=False)


@pytest.mark.more
@pytest.mark.parametrize("page", SLOW_PAGES, ids=name)
def test_every_slow_block_runs(page: Path, tmp_path: Path, programs: Path, address: str) -> None:
    follow(page, Reader(tmp_path, programs, address), slow=True)


def follow(page: Path, reader: Reader, *, slow: bool) -> None:
    """Run the blocks of a page in order, or only the slow ones, and compare the answers."""
    printed = ""
    for block in blocks(page):
        if block.language == "bash" and runs(block, slow=slow):
            printed = reader.follow(block)
        elif block.mark == ANSWER and not slow:
            assert_alike(json.loads(block.text), json.loads(printed), block.place)
    # Later Python blocks of a page build on earlier ones.
    scripts = [
        block for block in blocks(page) if block.language == "python" and runs(block, slow=slow)
    ]
    if scripts:
        lines = [f"# {block.place}\n{block.text}" for block in scripts]
        reader.run(sys.executable, "-c", "\n".join(lines).replace(ADDRESS, reader.address))


def runs(block: Block, *, slow: bool) -> bool:
    """Whether the block runs, and is not only checked."""
    if (block.mark == SLOW) != slow:
        return False
    return not block.skip_reason


def assert_alike(documented: Any, actual: Any, place: str) -> None:
    """Check that two JSON documents are equal, except for times and the last digits of scores."""
    if isinstance(documented, dict):
        assert documented.keys() == actual.keys(), place
        for key, value in documented.items():
            if key == "timings_ms":
                assert value.keys() == actual[key].keys(), place
            else:
                assert_alike(value, actual[key], place)
    elif isinstance(documented, list):
        assert len(documented) == len(actual), place
        for pair in zip(documented, actual, strict=True):
            assert_alike(*pair, place)
    elif isinstance(documented, float):
        assert documented == pytest.approx(actual, abs=TOLERANCE), place
    else:
        assert documented == actual, place


@each_page
def test_languages_and_marks_are_known(page: Path) -> None:
    for block in blocks(page):
        assert block.language in {"bash", "bibtex", "json", "python", "text", "yaml"}, block.place
        assert block.skip_reason in {"", *REASONS}, block.place
    fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(blocks(page)), "an indented or unclosed block"


def test_marks_are_used() -> None:
    used = {block.skip_reason for block in ALL}
    assert used >= REASONS


@each_page
def test_syntax(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            checked = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True
            )
            assert checked.returncode == 0, f"{block.place}: {checked.stderr}"
        elif block.language == "python":
            ast.parse(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block):
                assert not unknown(words), f"{block.place}: {unknown(words)}"


def test_the_server_of_the_blocks_is_that_of_make_serve() -> None:
    recipe = (TOP / "Makefile").read_text()
    assert f"tokenfold serve --port $(PORT) {' '.join(ARGUMENTS)} $(ARGS)" in recipe


def test_clients_run(tmp_path: Path, programs: Path, address: str) -> None:
    reader = Reader(tmp_path, programs, address)
    server, photo = f"http://{address}", "examples/photos/cat.jpg"
    python = reader.run(
        "python", "examples/client.py", photo, "--server", server, "--level", "fast"
    )
    assert python.split()[0] == "cat"
    shell = reader.run("sh", "examples/client.sh", photo, "fast", server)
    assert json.loads(shell)["results"][0]["reduction"]["level"] == "fast"


def test_a_client_reports_an_error(tmp_path: Path, programs: Path, address: str) -> None:
    reader = Reader(tmp_path, programs, address)
    arguments = ("examples/photos/cat.jpg", "--server", f"http://{address}", "--level", "missing")
    with pytest.raises(AssertionError, match="'missing'"):
        reader.run("python", "examples/client.py", *arguments)


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent(
            """\
            <!-- not run: needs a GPU -->
            ```bash
            make test-gpu
            ```
            text
            ```python
            print()
            ```
            """
        )
    )
    first, second = blocks(page)
    assert (first.line, first.language, first.text) == (2, "bash", "make test-gpu\n")
    assert first.skip_reason == "needs a GPU"
    assert (second.line, second.language, second.mark) == (6, "python", "")
