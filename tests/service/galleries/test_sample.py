"""The sample gallery: filled once, and completed after an interruption."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI

from tests.service import standin
from tests.service.galleries.served import galleries_at, search
from tests.service.standin import bundle, until
from tests.service.standin_dual import dual_bundle
from tokenfold.service.api.routes.galleries import describe
from tokenfold.service.app import create_app
from tokenfold.service.errors import OtherModel
from tokenfold.service.galleries import sample

IMAGES = 40


def app_on(root: Path, **changes: object) -> FastAPI:
    return create_app(standin.settings(root, **changes))


async def fill(app: FastAPI, images: int) -> int:
    """Fill the gallery up to `images` images. Return their number."""
    core, keeper = app.state.core, app.state.keeper
    core.start()
    try:
        assert await core.wait_started()
        await sample.fill(core.dispatcher, keeper, images=images)
        gallery = await (await keeper.galleries()).get(sample.NAME)
        return (await describe(core, gallery)).images
    finally:
        await keeper.stop()
        core.stop()


def test_it_is_filled_once_and_completed(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "a", name=sample.MODEL)
    # The second call continues where the first one stopped; the third has nothing to do.
    assert asyncio.run(fill(app_on(tmp_path), 10)) == 10
    assert asyncio.run(fill(app_on(tmp_path), IMAGES)) == IMAGES
    assert asyncio.run(fill(app_on(tmp_path), IMAGES)) == IMAGES
    with galleries_at(tmp_path) as remote:
        answer = search(remote, sample.NAME, text="red", filter={"things": {"gte": 3}}, top_k=5)
        assert len(answer["results"]) == 5
        assert set(answer["results"][0]["metadata"]) == {"things", "colours", "shapes"}
        assert all(hit["metadata"]["things"] >= 3 for hit in answer["results"])
        assert remote.sample("tokenfold_gallery_images", gallery=sample.NAME) == IMAGES


def test_a_server_fills_it_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SEEDS", sample.SEEDS[:IMAGES])
    dual_bundle(tmp_path / "a", name=sample.MODEL)
    with galleries_at(tmp_path, sample_gallery=True) as remote:
        path = f"/v1/galleries/{sample.NAME}"
        until(lambda: remote.get(path).json().get("images") == IMAGES, 20)


def test_a_server_without_its_model_still_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle(tmp_path / "a")
    with galleries_at(tmp_path, sample_gallery=True) as remote:
        until(lambda: "is incomplete" in caplog.text)
        assert remote.get("/v1/galleries").json() == {"galleries": []}


def test_another_export_does_not_change_it(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    for name, red in (("old", 1.0), ("new", 0.5)):
        dual_bundle(tmp_path / name / "a", name=sample.MODEL, red=red)
    asyncio.run(fill(app_on(tmp_path / "old", data_dir=data), 5))
    with pytest.raises(OtherModel):
        asyncio.run(fill(app_on(tmp_path / "new", data_dir=data), IMAGES))
    assert asyncio.run(fill(app_on(tmp_path / "old", data_dir=data), 5)) == 5


def test_its_images_are_distinct() -> None:
    assert len(sample.SEEDS) == sample.IMAGES == 500
    arrivals = sample._draw(sample.SEEDS[:20])
    assert len({image.picture for image in arrivals}) == 20
    assert len({image.id for image in arrivals}) == 20
