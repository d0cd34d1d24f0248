"""Tests of the parsing of request bodies: forms and JSON."""

from __future__ import annotations

import time

import pytest

from tests.service.api.classification import results
from tests.service.standin import Remote, picture, problem


class TestMalformedBodies:
    def test_text_in_the_place_of_a_file_is_explained(self, client: Remote) -> None:
        as_text = client.post("/v1/classify", files={"image": (None, "hello")})
        assert "-F image=@path" in problem(as_text, 422, "invalid-request")
        unnamed = client.post("/v1/classify", files={"image": (None, picture(), "image/png")})
        assert results(unnamed)
        as_file = client.post(
            "/v1/classify", files={"image": ("a.png", picture()), "level": ("l", b"fast")}
        )
        assert "not a file" in problem(as_file, 422, "invalid-request")

    def test_a_repeated_field_is_refused(self, client: Remote) -> None:
        detail = problem(client.classify(picture(), top_k=["1", "2"]), 422, "invalid-request")
        assert "twice" in detail

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"image": "a"'])
    def test_malformed_json_is_refused(self, client: Remote, content: bytes) -> None:
        response = client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json"}
        )
        problem(response, 400, "malformed-body")

    @pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"x"'])
    def test_json_that_is_not_an_object_is_refused(self, client: Remote, content: bytes) -> None:
        response = client.post(
            "/v1/classify", content=content, headers={"content-type": "application/json"}
        )
        problem(response, 422, "invalid-request")

    @pytest.mark.parametrize(
        "kind", ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data;b"]
    )
    def test_malformed_forms_are_refused(self, client: Remote, kind: str) -> None:
        response = client.post("/v1/classify", content=b"abc", headers={"content-type": kind})
        problem(response, 400, "malformed-body")

    @pytest.mark.parametrize("kind", [None, "image/png", "application/x-www-form-urlencoded", ";"])
    def test_other_content_types_are_refused(self, client: Remote, kind: str | None) -> None:
        headers = {} if kind is None else {"content-type": kind}
        response = client.post("/v1/classify", content=picture(), headers=headers)
        problem(response, 415, "unsupported-media-type")


BIG = 4_000_000
PART = b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("json", b"{" + b",".join(b'"%d":1' % i for i in range(BIG // 12)) + b"}"),
        ("json", b"{" + b",".join(b'"%d":1' % i for i in range(1000)) + b"}"),
        ("json", b'{"image":[' + b"1," * (BIG // 2) + b"1]}"),
        ("json", b'{"image":[' + b",".join([b'""'] * 2000) + b"]}"),
        ("json", b'{"image":"","include":[' + b",".join([b"1"] * 2000) + b"]}"),
        ("json", b'{"image":' + b"[" * (BIG // 2)),
        ("form", PART * (BIG // len(PART))),
        ("form", b"--X\r\n" + b"a:b\r\n" * (BIG // 5) + b"\r\n"),
        ("form", b"--X\r\nContent-Disposition: form-data" + b'; a="\\"' * (BIG // 7)),
        ("form", PART + b"\r\n--Xa" * (BIG // 6)),
        ("form", b'--X\r\nContent-Disposition: form-data; name="level"\r\n\r\n' + b"," * BIG),
        (
            "form",
            b'--X\r\nContent-Disposition: form-data; name="include"\r\n\r\n'
            + b"," * BIG
            + b"\r\n--X--",
        ),
        ("form", b"".join(PART.replace(b"image", b"%d" % i) + b"\r\n" for i in range(200))),
    ],
)
def test_bodies_that_are_expensive_to_parse_are_refused_at_once(
    client: Remote, kind: str, content: bytes
) -> None:
    types = {"json": "application/json", "form": "multipart/form-data; boundary=X"}
    begun = time.perf_counter()
    response = client.post("/v1/classify", content=content, headers={"content-type": types[kind]})
    assert response.status_code in (400, 422)
    assert len(response.content) < 10_000
    assert time.perf_counter() - begun < 1
