"""Facts of the documentation that the program knows: links, metrics, settings, routes, options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.docs import tables
from tests.docs.commands import OPTION, options
from tests.docs.pages import PAGES, TOP, anchors, links, name, prose
from tokenfold.export.ops.functions import functions
from tokenfold.scenes import pair, png, scene
from tokenfold.service.settings import Settings

each_page = pytest.mark.parametrize("page", PAGES, ids=name)
MAX_README_WORDS = 900
MAX_BYTES = {"examples/photos": 100_000, "docs/images": 300_000}
SCENES = {"triangle": 10_000_020, "star": 10_000_024, "squares": 10_000_018, "rings": 10_000_016}
PAIR = 10_000_004
COMMANDS = ("serve", "export", "inspect", "build", "bench", "ingest")
PROGRAMS = [("tokenfold", command) for command in COMMANDS]
# Options of other programs that pages name.
FOREIGN = {"--build-arg", "--target"}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- table:" in page.read_text()])
def test_written_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert tables.rewritten(text) == text, "run: python -m tests.docs.tables"


@each_page
def test_metrics_exist(page: Path) -> None:
    with tables.application() as app:
        families = list(app.state.core.metrics.registry.collect())
    known = {family.name for family in families} | {
        "tokenfold_gpu_memory_bytes",
        "tokenfold_gpu_utilization_ratio",
    }
    for metric in re.findall(r"\btokenfold_[a-z_]+\b", page.read_text()):
        plain = re.sub(r"_(bucket|sum|count|total)$", "", metric)
        assert metric in known or plain in known or metric.startswith("tokenfold_ort"), metric


@each_page
def test_environment_variables_exist(page: Path) -> None:
    settings = {f"TOKENFOLD_{field.upper()}" for field in Settings.model_fields}
    for variable in set(re.findall(r"\bTOKENFOLD_[A-Z_]+\b", page.read_text())) - settings:
        sources = (TOP / "tokenfold").rglob("*.py")
        assert any(variable in source.read_text() for source in sources), variable


@each_page
def test_routes_exist(page: Path) -> None:
    with tables.application() as app:
        paths = app.openapi()["paths"]
    patterns = [re.sub(r"\{\w+\}", "[^/]+", path) for path in paths]
    for route in set(re.findall(r"(?<![\w.])/v1/[\w/{}.-]+", page.read_text())):
        assert any(re.fullmatch(pattern, route.rstrip("/.")) for pattern in patterns), route


@each_page
def test_options_in_prose_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    named = {option for span in spans for option in OPTION.findall(span)}
    known = {option for program in PROGRAMS for option in options(program)} if named else set()
    assert named <= known | FOREIGN


def test_readme_is_short() -> None:
    words = len((TOP / "README.md").read_text().split())
    assert words <= MAX_README_WORDS


@pytest.mark.parametrize("folder", MAX_BYTES)
def test_pictures_are_small(folder: str) -> None:
    for path in (TOP / folder).iterdir():
        assert path.stat().st_size <= MAX_BYTES[folder], path.name


def test_every_photo_has_its_source() -> None:
    readme = (TOP / "examples" / "README.md").read_text()
    notice = (TOP / "examples" / "NOTICE.md").read_text()
    assert "examples/NOTICE.md" in (TOP / "NOTICE").read_text()
    photos = sorted((TOP / "examples" / "photos").iterdir())
    assert len(photos) >= 12
    for path in photos:
        assert f"`{path.name}`" in readme, path.name
        assert f"`{path.name}`" in notice, path.name
        with Image.open(path) as image:
            assert max(image.size) <= 512, path.name


def test_scenes_are_those_of_their_seeds() -> None:
    folder = TOP / "examples" / "scenes"
    for name_, seed in SCENES.items():
        assert (folder / f"{name_}.png").read_bytes() == png(scene(seed)), name_
    left, right = pair(PAIR)
    assert (folder / "left.png").read_bytes() == png(left)
    assert (folder / "right.png").read_bytes() == png(right)


@pytest.mark.parametrize("op", sorted(functions()))
def test_every_op_is_documented(op: str) -> None:
    page = (TOP / "docs" / "ops.md").read_text()
    body = functions()[op]
    signature = f"{op}({', '.join(body.input)}) -> {', '.join(body.output)}"
    assert f"`{signature}`" in page.replace("\n", " ")
    for attribute in (*body.attribute, *(proto.name for proto in body.attribute_proto)):
        assert f"`{attribute}`" in page, attribute
