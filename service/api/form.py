"""Parser of multipart/form-data (RFC 7578) for a body in memory.

A streaming parser calls back for every few bytes. The size of the body is bounded before it gets
here, so slicing is enough, and takes a tenth of the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# Bodies of many parts, of long headers or of near-boundaries would keep the event loop busy for
# seconds.
_MAX_PARTS = 4096
_MAX_HEAD = 16_384

# name=token or name="quoted \" string", as in Content-Disposition and Content-Type.
_PARAMETER = re.compile(rb';\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')
_ESCAPED = re.compile(rb'\\(["\\])')
_LINE_END = re.compile(rb"[ \t]*\r\n")


class FormError(ValueError):
    """The body is no multipart form."""


class Part(NamedTuple):
    """A field of a form.

    Attributes:
        name: its name.
        filename: name of the file; browsers send one for each file.
        kind: its content type; some clients send it for files only, some for text too.
        content: its bytes.
    """

    name: str
    filename: str | None
    kind: str | None
    content: bytes


def options(header: str) -> tuple[str, dict[str, str]]:
    """Split a header like `form-data; name="image"` into its value and its parameters."""
    raw = header.encode("latin-1", "replace")
    value = raw.partition(b";")[0].strip().lower()
    parameters = {
        match[1].decode("latin-1").lower(): _text(
            match[3] if match[2] is None else _ESCAPED.sub(rb"\1", match[2])
        )
        for match in _PARAMETER.finditer(raw)
    }
    return value.decode("latin-1"), parameters


def parts(body: bytes, boundary: str) -> Iterator[Part]:
    """Yield the fields of a form, in order.

    Raises:
        FormError: the form is truncated, or has another boundary.
    """
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    if not boundary or len(delimiter) > 256:
        raise FormError("the content type names no usable boundary")
    start = _after(body, delimiter, 0 if body.startswith(delimiter) else None)
    count = 0
    while start is not None:
        count += 1
        if count > _MAX_PARTS:
            raise FormError(f"it has more than {_MAX_PARTS} parts")
        head_end = body.find(b"\r\n\r\n", start - 2, start + _MAX_HEAD)
        if head_end < 0:
            raise FormError("it ends within a part's header, or the header is too long")
        content = head_end + 4
        name, filename, kind = _head(body[start:head_end])
        end = content - 2  # the line break of an empty part may belong to its header
        while True:
            end = body.find(b"\r\n" + delimiter, end)
            if end < 0:
                raise FormError("it ends within a part: the last boundary is missing")
            after = end + 2 + len(delimiter)
            if body.startswith(b"--", after):
                start = None
                break
            if (line := _LINE_END.match(body, after)) is not None:
                start = line.end()
                break
            end = after  # the content contains the beginning of the boundary
            count += 1
            if count > _MAX_PARTS:
                raise FormError("the content contains its boundary too often")
        yield Part(name, filename, kind, body[content : max(content, end)])


def _after(body: bytes, delimiter: bytes, at: int | None) -> int | None:
    """Return the start of the first part; None if the form has no parts."""
    if at is None:
        line_start = body.find(b"\r\n" + delimiter)
        if line_start < 0:
            raise FormError("it does not contain the boundary of the content type")
        at = line_start + 2
    after = at + len(delimiter)
    if body.startswith(b"--", after):
        return None
    line = _LINE_END.match(body, after)
    if line is None:
        raise FormError("its first line is not the boundary")
    return line.end()


def _head(head: bytes) -> tuple[str, str | None, str | None]:
    """Return a part's name, filename and content type."""
    parameters: dict[str, str] = {}
    kind = None
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        match key.strip().lower():
            case b"content-disposition":
                parameters = options(value.decode("latin-1"))[1]
            case b"content-type":
                kind = value.strip().decode("latin-1")
    if "name" not in parameters:
        raise FormError("a part has no name")
    return parameters["name"], parameters.get("filename", parameters.get("filename*")), kind


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
