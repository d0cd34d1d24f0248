"""Tests of the parser of multipart forms."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenfold.service.api.form import FormError, Part, options, parts

B = "XyZ"
# Clients differ in how they escape these characters.
names = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\%', exclude_categories=["Cc"]),
    min_size=1,
    max_size=8,
)


def body(*blocks: bytes, end: bytes = b"--XyZ--\r\n") -> bytes:
    return b"".join(b"--XyZ\r\n" + block + b"\r\n" for block in blocks) + end


def field(name: bytes, content: bytes, parameters: bytes = b"") -> bytes:
    return (
        b'Content-Disposition: form-data; name="' + name + b'"' + parameters + b"\r\n\r\n" + content
    )


@given(
    fields=st.lists(st.tuples(names, st.binary(max_size=40), st.booleans()), min_size=1),
    tricky=st.sampled_from([b"", b"\r\n--", b"\r\n--XyZ?", b"--XyZ", b"\r\n\r\n", b"\r"]),
)
def test_forms_encoded_by_httpx_are_parsed(
    fields: list[tuple[str, bytes, bool]], tricky: bytes
) -> None:
    sent = [
        (name, ("a b.png" if is_file else None, content + tricky))
        for name, content, is_file in fields
    ]
    request = httpx.Request("POST", "http://x", files=sent)
    boundary = options(request.headers["content-type"])[1]["boundary"]
    parsed = list(parts(request.read(), boundary))
    assert [(part.name, part.content) for part in parsed] == [
        (name, content) for name, (_, content) in sent
    ]
    assert [part.filename for part in parsed] == [filename for _, (filename, _) in sent]


@given(st.binary(max_size=300))
@example(b"--XyZ\r\n\r\n--XyZ--")
@example(b"--XyZ--")
@example(b"--XyZ\r\n")
def test_arbitrary_bytes_raise_only_form_errors(data: bytes) -> None:
    for candidate in (data, b"--XyZ\r\n" + data, body(field(b"a", data), end=data)):
        try:
            list(parts(candidate, B))
        except FormError:
            continue


def test_text_like_a_boundary_is_content() -> None:
    content = b"\r\n--XyZabc\r\n--Xy\r\n--XyZ x\r\n"
    assert list(parts(body(field(b"a", content)), B)) == [Part("a", None, None, content)]


def test_preamble_padding_and_epilogue_are_ignored() -> None:
    data = (
        b"ignored\r\n" + body(field(b"a", b"1")).replace(b"XyZ\r\n", b"XyZ  \r\n", 1) + b"ignored"
    )
    assert list(parts(data, B)) == [Part("a", None, None, b"1")]


def test_empty_parts_and_empty_forms_are_parsed() -> None:
    assert list(parts(body(field(b"a", b""), field(b"b", b"", b'; filename=""')), B)) == [
        Part("a", None, None, b""),
        Part("b", "", None, b""),
    ]
    assert list(parts(body(), B)) == []


def test_quoted_parameters_are_parsed_in_any_order() -> None:
    head = b'content-disposition:form-data ;filename="a\\"b;c.png"; NAME=image'
    head += b"\r\nX-More: 1\r\ncontent-TYPE: x/y"
    assert list(parts(body(head + b"\r\n\r\n1"), B)) == [Part("image", 'a"b;c.png', "x/y", b"1")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "boundary"),
        (b"image=1", "boundary"),
        (b"--XyZwrong\r\n", "first line"),
        (body(field(b"a", b"1"), end=b""), "last boundary"),
        (b"--XyZ\r\nContent-Disposition: form-data", "header"),
        (body(b"Content-Type: text/plain\r\n\r\n1"), "no name"),
        (body(b"Content-Disposition: form-data\r\n\r\n1"), "no name"),
    ],
)
def test_the_error_describes_the_defect(data: bytes, message: str) -> None:
    with pytest.raises(FormError, match=message):
        list(parts(data, B))


@pytest.mark.parametrize("boundary", ["", "x" * 300])
def test_invalid_boundaries_are_refused(boundary: str) -> None:
    with pytest.raises(FormError, match="boundary"):
        list(parts(b"--", boundary))
