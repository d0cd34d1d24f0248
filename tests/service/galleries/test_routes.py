"""Routes of galleries over HTTP: create, add, list, fetch and delete."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.service.galleries.served import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    add,
    added,
    bundles,
    create,
    galleries_at,
    search,
)
from tests.service.standin import Remote, bundle, picture, problem
from tests.service.standin_dual import WIDTH, dual_bundle
from tokenfold.service.api.schemas.galleries import (
    GalleryCreate,
    GalleryDescription,
    GalleryImage,
    GalleryList,
    ImagePage,
    ImagesAdd,
    ImagesAdded,
    ImagesDelete,
    ImagesDeleted,
    SearchRequest,
    SearchResponse,
)
from tokenfold.service.errors import StorageFailed
from tokenfold.service.galleries.table import Gallery


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = bundles(tmp_path_factory.mktemp("bundles"))
    dual_bundle(root / "d", name="other", red=0.5)
    with galleries_at(root, max_items=8) as remote:
        yield remote


def page(remote: Remote, name: str, **query: Any) -> dict[str, Any]:
    response = remote.get(f"/v1/galleries/{name}/images", params=query)
    assert response.status_code == 200, response.text
    ImagePage.model_validate_json(response.content)
    response_page: dict[str, Any] = response.json()
    return response_page


class TestGalleries:
    def test_create_describe_list_and_delete(self, client: Remote) -> None:
        response = client.post("/v1/galleries", json={"name": "life"})
        assert response.status_code == 201
        assert response.headers["location"] == "/v1/galleries/life"
        description_created = response.json()
        GalleryDescription.model_validate_json(response.content)
        assert description_created["model"] == "dual"
        assert description_created["level"] == "exact"
        assert description_created["reduction"] == 0
        assert description_created["width"] == WIDTH
        assert description_created["images"] == description_created["indexed"] == 0
        assert description_created["served"] is True
        assert client.get("/v1/galleries/life").json()["name"] == "life"
        listed = client.get("/v1/galleries")
        GalleryList.model_validate_json(listed.content)
        assert "life" in [description["name"] for description in listed.json()["galleries"]]
        assert client.delete("/v1/galleries/life").status_code == 204
        problem(client.get("/v1/galleries/life"), 404, "unknown-gallery")
        problem(client.delete("/v1/galleries/life"), 404, "unknown-gallery")

    def test_the_level_of_a_gallery_is_fixed(self, client: Remote) -> None:
        assert create(client, "quick", level="fast")["reduction"] == 0.6
        description = create(client, "own", reduction=0.45, model="dual")
        assert (description["level"], description["reduction"]) == ("custom", 0.45)
        (result,) = added(add(client, "quick", RED))
        assert result["reduction"]["level"] == "fast"
        (result,) = added(add(client, "own", RED))
        assert result["reduction"]["level"] == "custom"
        assert result["reduction"]["requested"] == 0.45

    def test_create_accepts_a_form(self, client: Remote) -> None:
        response = client.post("/v1/galleries", files={"name": (None, "form")})
        assert response.status_code == 201

    def test_invalid_galleries_are_refused(self, client: Remote) -> None:
        create(client, "twice")

        def post(**fields: Any) -> Any:
            return client.post("/v1/galleries", json=fields)

        problem(post(name="twice"), 409, "gallery-exists")
        problem(post(name="x", model="colours"), 404, "unknown-model")
        problem(post(name="x", level="turbo"), 422, "unknown-level")
        problem(post(name="x", level="fast", reduction=0.2), 422, "two-selectors")
        problem(post(), 422, "invalid-request")
        for name in ("", "A", "a/b", "..", "x" * 65, "a b"):
            assert "name" in problem(post(name=name), 422, "invalid-request")


class TestImages:
    def test_ids_default_to_the_hash_of_the_content(self, client: Remote) -> None:
        create(client, "content")
        results = added(add(client, "content", RED, BLUE))
        assert [result["status"] for result in results] == ["added", "added"]
        assert [result["id"] for result in results] == [
            hashlib.sha256(data).hexdigest() for data in (RED, BLUE)
        ]
        assert results[0]["reduction"]["tokens_in"] == 17
        assert set(results[0]["timings_ms"]) >= {"decode", "queue", "infer"}
        repeated = added(add(client, "content", BLUE, GREEN, BLUE))
        assert [result["status"] for result in repeated] == ["unchanged", "added", "unchanged"]
        assert "reduction" not in repeated[0]
        assert client.get("/v1/galleries/content").json()["images"] == 3

    def test_the_same_content_is_not_embedded_again(self, client: Remote) -> None:
        create(client, "once")
        add(client, "once", RED, GREEN, ids=["r", "g"])
        before = client.sample("tokenfold_images_total", task="embed")
        assert [
            result["status"] for result in added(add(client, "once", RED, GREEN, ids=["r", "g"]))
        ] == [*("unchanged", "unchanged")]
        # New metadata needs no embedding either.
        results = added(add(client, "once", RED, ids=["r"], metadata=[{"stars": 5}]))
        assert results[0]["status"] == "replaced"
        assert client.sample("tokenfold_images_total", task="embed") == before
        image = client.get("/v1/galleries/once/images/r").json()
        assert image["metadata"] == {"stars": 5}
        assert search(client, "once", text="red", top_k=1)["results"][0]["score"] > 0.9
        # Metadata stays until it is replaced.
        assert added(add(client, "once", RED, ids=["r"]))[0]["status"] == "unchanged"
        assert client.get("/v1/galleries/once/images/r").json()["metadata"] == {"stars": 5}

    def test_new_content_replaces_an_image(self, client: Remote) -> None:
        create(client, "replaced")
        add(client, "replaced", RED, ids=["x"], metadata=[{"n": 1}])
        (result,) = added(add(client, "replaced", BLUE, ids=["x"]))
        assert result["status"] == "replaced"
        image = client.get("/v1/galleries/replaced/images/x").json()
        assert image["sha256"] == hashlib.sha256(BLUE).hexdigest()
        assert image["metadata"] == {}
        assert search(client, "replaced", text="blue")["results"][0]["score"] > 0.9

    def test_metadata_per_image_or_for_all(self, client: Remote) -> None:
        create(client, "said")
        add(client, "said", RED, BLUE, ids=["a", "b"], metadata=[{"n": 1, "tags": ["x"]}, {}])
        add(client, "said", GREEN, YELLOW, ids=["c", "d"], metadata=[{"n": 2}])
        metadata_by_id = {
            image["id"]: image["metadata"] for image in page(client, "said")["images"]
        }
        assert metadata_by_id == {
            "a": {"n": 1, "tags": ["x"]},
            "b": {},
            "c": {"n": 2},
            "d": {"n": 2},
        }

    def test_the_limit_of_metadata_applies_to_its_text(self, client: Remote) -> None:
        create(client, "long")
        metadata = {"x": "ä" * 30_000}
        text = json.dumps(metadata, ensure_ascii=False)
        response = client.post(
            "/v1/galleries/long/images",
            files=[("image", ("a.png", RED))],
            data={"id": "form", "metadata": text},
        )
        assert added(response)
        body = {"image": base64.b64encode(RED).decode(), "id": "json", "metadata": metadata}
        assert added(client.post("/v1/galleries/long/images", json=body))
        assert [image["metadata"] for image in page(client, "long")["images"]] == [metadata] * 2
        body["metadata"] = {"x": "ä" * 70_000}
        response = client.post("/v1/galleries/long/images", json=body)
        assert "65536" in problem(response, 422, "invalid-request")

    def test_an_image_twice_in_a_request(self, client: Remote) -> None:
        create(client, "double")
        response = add(client, "double", RED, RED, metadata=[{"n": 1}, {"n": 2}])
        assert "different metadata" in problem(response, 422, "invalid-request")
        results = added(add(client, "double", RED, RED, metadata=[{"n": 1}, {"n": 1}]))
        assert [item["status"] for item in results] == ["added", "unchanged"]
        assert [item["metadata"] for item in page(client, "double")["images"]] == [{"n": 1}]

    def test_a_failing_count_does_not_fail_the_request(
        self, client: Remote, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def failing(_: Gallery) -> int:
            raise StorageFailed("Not now.")

        create(client, "uncounted")
        monkeypatch.setattr(Gallery, "count", failing)
        assert added(add(client, "uncounted", RED, ids=["r"]))[0]["status"] == "added"
        assert client.delete("/v1/galleries/uncounted/images/r").status_code == 204

    def test_images_as_json(self, client: Remote) -> None:
        create(client, "json")
        encoded = base64.b64encode(RED).decode()
        for body in (
            {"image": encoded, "id": "a", "metadata": {"n": 1}},
            {"image": [f"data:image/png;base64,{encoded}"], "id": ["b"], "metadata": [{"n": 1}]},
        ):
            response = client.post("/v1/galleries/json/images", json=body)
            assert added(response)[0]["status"] == "added"
        images = page(client, "json")["images"]
        assert images[0]["sha256"] == images[1]["sha256"] == hashlib.sha256(RED).hexdigest()
        assert [encoded["metadata"] for encoded in images] == [{"n": 1}] * 2

    def test_a_bad_image_fails_alone(self, client: Remote) -> None:
        create(client, "bad")
        metric = "tokenfold_gallery_ingested_images_total"
        before = client.sample(metric, status="failed")
        results = added(add(client, "bad", RED, b"no image", BLUE[:60], GREEN))
        assert results[1]["problem"]["status"] == 415
        assert results[2]["problem"]["status"] == 422
        assert [result.get("status") for result in results] == ["added", None, None, "added"]
        assert client.get("/v1/galleries/bad").json()["images"] == 2
        assert client.sample(metric, status="failed") == before + 2
        problem(add(client, "bad", b"no image"), 415, "image-format")
        response = add(client, "bad", b"no image", b"nor this")
        problem(response, 415, "image-format")
        assert len(response.json()["results"]) == 2
        response = client.post("/v1/galleries/bad/images", json={"image": ["?", "?"]})
        problem(response, 422, "bad-image")

    def test_invalid_requests_to_add_are_refused(self, client: Remote) -> None:
        create(client, "refused")

        def refused(slug: str = "invalid-request", status: int = 422, **fields: Any) -> str:
            return problem(add(client, "refused", RED, BLUE, **fields), status, slug)

        assert "2 of image and 1 of id" in refused(ids=["a"])
        assert "3 of metadata" in refused(metadata=[{}] * 3)
        assert "id a" in refused(ids=["a", "a"])
        for name in ("a/b", "", "..", "a b", "x" * 201, "ä"):
            assert "id" in refused(ids=["ok", name])
        for text in ("[1]", "{", "1", '{"x": NaN}', json.dumps({"x": "y" * 70_000})):
            response = client.post(
                "/v1/galleries/refused/images",
                files=[("image", ("a.png", RED))],
                data={"metadata": text},
            )
            assert "metadata" in problem(response, 422, "invalid-request")
        assert "at most 8" in problem(add(client, "refused", *[RED] * 9), 422, "invalid-request")
        problem(add(client, "missing", RED), 404, "unknown-gallery")
        assert client.get("/v1/galleries/refused").json()["images"] == 0

    def test_lists_have_pages(self, client: Remote) -> None:
        create(client, "pages")
        names = [f"i{index:02}" for index in range(12)]
        pictures = [picture((index * 20, 0, 0), (8, 8)) for index in range(12)]  # type: ignore[arg-type]
        for index in (0, 6):
            metadata = [{"odd": bool(number % 2)} for number in range(index, index + 6)]
            add(
                client,
                "pages",
                *pictures[index : index + 6],
                ids=names[index : index + 6],
                metadata=metadata,
            )
        listed_ids: list[str] = []
        query: dict[str, Any] = {"limit": 5}
        sizes = []
        while True:
            current = page(client, "pages", **query)
            sizes.append(len(current["images"]))
            listed_ids += [image["id"] for image in current["images"]]
            if "next" not in current:
                break
            query["after"] = current["next"]
        assert listed_ids == names
        assert sizes == [5, 5, 2]
        odd = page(client, "pages", filter='{"odd": true}')
        assert [image["id"] for image in odd["images"]] == names[1::2]
        images = "/v1/galleries/pages/images"
        for invalid in ("{", "[]", "1"):
            problem(client.get(images, params={"filter": invalid}), 422, "invalid-request")
        problem(client.get(images, params={"filter": '{"odd": {"no": 1}}'}), 422, "invalid-filter")
        problem(client.get(images, params={"limit": 0}), 422, "invalid-request")
        problem(client.get("/v1/galleries/none/images"), 404, "unknown-gallery")

    def test_fetch_and_delete_an_image(self, client: Remote) -> None:
        create(client, "fetched")
        strange = "a.b_c~d:e@f+g=h-i"
        added(add(client, "fetched", picture("red", (40, 30)), ids=[strange], metadata=[{"n": 1}]))
        (listed,) = page(client, "fetched")["images"]
        path = f"/v1/galleries/fetched/images/{strange}"
        response = client.get(path)
        GalleryImage.model_validate_json(response.content)
        assert response.json() == listed
        assert (listed["width"], listed["height"]) == (40, 30)
        assert listed["metadata"] == {"n": 1}
        vector = np.array(client.get(path, params={"include": "vector"}).json()["vector"])
        assert vector.shape == (WIDTH,)
        assert math.isclose(np.linalg.norm(vector), 1, abs_tol=1e-5)
        problem(client.get(path, params={"include": "x"}), 422, "invalid-request")

        thumbnail = client.get(listed["thumbnail"])
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert thumbnail.headers["x-content-type-options"] == "nosniff"
        assert Image.open(io.BytesIO(thumbnail.content)).size == (40, 30)
        tag = thumbnail.headers["etag"]
        cached = client.get(listed["thumbnail"], headers={"if-none-match": tag})
        assert (cached.status_code, cached.content) == (304, b"")
        assert client.head(listed["thumbnail"]).status_code == 200

        assert client.delete(path).status_code == 204
        for missing in (client.delete(path), client.get(path), client.get(listed["thumbnail"])):
            problem(missing, 404, "unknown-image")
        assert client.get("/v1/galleries/fetched").json()["images"] == 0

    def test_delete_several_images(self, client: Remote) -> None:
        create(client, "together")
        add(client, "together", RED, GREEN, BLUE, ids=["r", "g", "b"])
        path = "/v1/galleries/together/delete-images"
        assert client.post(path, json={"ids": ["r", "b", "x"]}).json() == {"deleted": 2}
        assert [image["id"] for image in page(client, "together")["images"]] == ["g"]
        assert client.post(path, json={"ids": "g"}).json() == {"deleted": 1}
        problem(client.post(path, json={"ids": []}), 422, "invalid-request")


class TestModels:
    def test_another_model_is_refused(self, client: Remote) -> None:
        create(client, "mine", model="dual")
        detail = problem(add(client, "mine", RED, model="other"), 409, "other-model")
        assert "dual" in detail
        added(add(client, "mine", RED, model="dual"))
        body = {"text": "red", "model": "other"}
        problem(client.post("/v1/galleries/mine/search", json=body), 409, "other-model")

    def test_a_model_exported_again_or_missing(self, tmp_path: Path) -> None:
        data = str(tmp_path / "data")
        dual_bundle(tmp_path / "old" / "a")
        with galleries_at(tmp_path / "old", data_dir=data) as remote:
            create(remote, "kept")
            added(add(remote, "kept", RED, BLUE, WHITE, ids=["r", "b", "w"]))
        dual_bundle(tmp_path / "new" / "a", red=0.5)
        dual_bundle(tmp_path / "gone" / "a", name="other")
        for root in ("new", "gone"):
            with galleries_at(tmp_path / root, data_dir=data) as remote:
                description = remote.get("/v1/galleries/kept").json()
                assert (description["served"], description["images"]) == (False, 3)
                path = "/v1/galleries/kept"
                problem(add(remote, "kept", GREEN), 409, "other-model")
                for query in ({"text": "red"}, {"image": base64.b64encode(RED).decode()}):
                    problem(remote.post(f"{path}/search", json=query), 409, "other-model")
                # The gallery can still be read.
                assert [image["id"] for image in page(remote, "kept")["images"]] == ["b", "r", "w"]
                assert len(search(remote, "kept", id="r")["results"]) == 2
                assert remote.get(f"{path}/images/r/thumbnail").status_code == 200
        with galleries_at(tmp_path / "new", data_dir=data) as remote:
            assert remote.delete("/v1/galleries/kept/images/w").status_code == 204
        with galleries_at(tmp_path / "old", data_dir=data) as remote:
            # The old model still matches the gallery.
            assert search(remote, "kept", text="red")["results"][0]["id"] == "r"
            assert added(add(remote, "kept", RED, ids=["r"]))[0]["status"] == "unchanged"

    def test_without_a_dual_encoder(self, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        bundle(tmp_path / "none" / "a")
        with galleries_at(tmp_path / "none") as remote:
            problem(remote.post("/v1/galleries", json={"name": "x"}), 404, "unknown-model")
            assert remote.get("/v1/galleries").json() == {"galleries": []}


class TestStorage:
    def test_galleries_survive_a_restart(self, tmp_path: Path) -> None:
        root = bundles(tmp_path / "bundles")
        with galleries_at(root) as remote:
            create(remote, "kept", level="fast")
            added(add(remote, "kept", RED, BLUE, ids=["r", "b"], metadata=[{"n": 1}]))
        with galleries_at(root) as remote:
            assert remote.get("/v1/galleries/kept").json()["level"] == "fast"
            assert search(remote, "kept", text="blue")["results"][0]["id"] == "b"
            assert remote.sample("tokenfold_gallery_images", gallery="kept") == 2

    def test_two_servers_share_a_data_directory(self, tmp_path: Path) -> None:
        root, data = bundles(tmp_path / "bundles"), str(tmp_path / "data")
        with (
            galleries_at(root, data_dir=data) as first,
            galleries_at(root, data_dir=data) as second,
        ):
            create(first, "shared")
            added(add(second, "shared", RED, ids=["r"]))
            added(add(first, "shared", BLUE, ids=["b"]))
            for remote in (first, second):
                assert [image["id"] for image in page(remote, "shared")["images"]] == ["b", "r"]

    def test_an_unusable_data_directory(self, tmp_path: Path) -> None:
        root = bundles(tmp_path / "bundles")
        (tmp_path / "file").write_text("no folder")
        with galleries_at(root, data_dir=str(tmp_path / "file" / "data")) as remote:
            for response in (
                remote.get("/v1/galleries"),
                remote.post("/v1/galleries", json={"name": "x"}),
                add(remote, "x", RED),
            ):
                problem(response, 500, "storage-failed")
            assert remote.classify(RED).status_code == 200
            assert remote.get("/readyz").status_code == 200

    def test_metrics(self, client: Remote) -> None:
        create(client, "counted")
        before = client.sample("tokenfold_gallery_ingest_duration_seconds_count")
        added_before = client.sample("tokenfold_gallery_ingested_images_total", status="added")
        added(add(client, "counted", RED, GREEN, ids=["r", "g"]))
        added(add(client, "counted", RED, GREEN, ids=["r", "g"]))
        name = "tokenfold_gallery_images"
        assert client.sample(name, gallery="counted") == 2
        assert client.sample("tokenfold_gallery_ingest_duration_seconds_count") == before + 2
        assert (
            client.sample("tokenfold_gallery_ingested_images_total", status="added")
            == added_before + 2
        )
        client.delete("/v1/galleries/counted/images/r")
        assert client.sample(name, gallery="counted") == 1
        client.delete("/v1/galleries/counted")
        assert f'{name}{{gallery="counted"}}' not in client.get("/metrics").text


def test_examples_of_the_openapi_document(client: Remote) -> None:
    document = client.get("/openapi.json").json()
    create(client, "holiday")
    examples: dict[str, tuple[type[BaseModel], type[BaseModel], int]] = {
        "": (GalleryCreate, GalleryDescription, 201),
        "/{name}/images": (ImagesAdd, ImagesAdded, 200),
        "/{name}/delete-images": (ImagesDelete, ImagesDeleted, 200),
        "/{name}/search": (SearchRequest, SearchResponse, 200),
    }
    for path, (request_model, response_model, status) in examples.items():
        operation = document["paths"][f"/v1/galleries{path}"]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        example = content["examples"]["usual"]["value"]
        request_model.model_validate(example)
        response_example = operation["responses"][str(status)]["content"]["application/json"][
            "example"
        ]
        response_model.model_validate(response_example)
        if path:  # the gallery of the example exists already
            if path.endswith("search"):
                example = example | {"rerank": 8}
            response = client.post(f"/v1/galleries{path}".format(name="holiday"), json=example)
            assert response.status_code == status, response.text
    schemas = document["components"]["schemas"]
    metadata = schemas["ImagesAdd"]["properties"]["metadata"]
    assert metadata["anyOf"][0]["type"] == "object"
    form = schemas["ImagesAddForm"]["properties"]["metadata"]["items"]
    assert form["contentMediaType"] == "application/json"
    assert schemas["SearchRequestForm"]["properties"]["filter"]["type"] == "string"
    assert schemas["SearchRequest"]["properties"]["rerank"]["maximum"] == 100
    assert schemas["SearchRequest"]["properties"]["model"]["enum"] == ["dual", "other"]
    assert "507" in document["paths"]["/v1/galleries/{name}/images"]["post"]["responses"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/galleries", "GET, HEAD, POST"),
        ("/v1/galleries/x", "DELETE, GET, HEAD"),
        ("/v1/galleries/x/images", "GET, HEAD, POST"),
        ("/v1/galleries/x/images/y", "DELETE, GET, HEAD"),
        ("/v1/galleries/x/search", "POST"),
    ],
)
def test_allowed_methods(client: Remote, path: str, methods: str) -> None:
    response = client.put(path)
    assert response.status_code == 405
    assert response.headers["allow"] == methods
