"""multipart/form-data (RFC 7578), of a body that is in memory whole.

A parser for streams calls back for every few bytes and writes files in pieces; the body's size is
bounded before it gets here, so that slicing is enough, at a tenth of the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# Bodies of nothing but parts, headers, or what looks like the boundary would keep the event loop
# busy for seconds.
_MOST = 4096
_LONGEST_HEAD = 16_384

# name=token or name="quoted \" string", as in Content-Disposition and Content-Type.
_PARAMETER = re.compile(rb';\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')
_ESCAPED = re.compile(rb'\\(["\\])')
_LINE_END = re.compile(rb"[ \t]*\r\n")


class FormError(ValueError):
    """The body is no multipart form."""


class Part(NamedTuple):
    """A field.

    Attributes:
        filename: a browser gives one to each file.
        kind: its content type, which some clients give to files only, and some to text too.
    """

    name: str
    filename: str | None
    kind: str | None
    content: bytes


def options(header: str) -> tuple[str, dict[str, str]]:
    """A header like `form-data; name="image"` as its value and its parameters, names lower case."""
    raw = header.encode("latin-1", "replace")
    value = raw.partition(b";")[0].strip().lower()
    found = {
        match[1].decode("latin-1").lower(): _text(
            match[3] if match[2] is None else _ESCAPED.sub(rb"\1", match[2])
        )
        for match in _PARAMETER.finditer(raw)
    }
    return value.decode("latin-1"), found


def parts(body: bytes, boundary: str) -> Iterator[Part]:
    """The fields of a form, in order.

    Raises:
        FormError: it is cut off, or not of this boundary.
    """
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    if not boundary or len(delimiter) > 256:
        raise FormError("the content type names no usable boundary")
    start = _after(body, delimiter, 0 if body.startswith(delimiter) else None)
    seen = 0
    while start is not None:
        seen += 1
        if seen > _MOST:
            raise FormError(f"it has more than {_MOST} parts")
        head_end = body.find(b"\r\n\r\n", start - 2, start + _LONGEST_HEAD)
        if head_end < 0:
            raise FormError("it ends within a part's header, or the header is too long")
        content = head_end + 4
        name, filename, kind = _head(body[start:head_end])
        end = content - 2  # an empty part's line break may belong to its header
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
            end = after  # the content happens to hold what the boundary begins with
            seen += 1
            if seen > _MOST:
                raise FormError("its boundary is no good: the content is full of it")
        yield Part(name, filename, kind, body[content : max(content, end)])


def _after(body: bytes, delimiter: bytes, at: int | None) -> int | None:
    """Where the first part begins; None if the form has none."""
    if at is None:
        found = body.find(b"\r\n" + delimiter)
        if found < 0:
            raise FormError("the boundary of the content type is not in it")
        at = found + 2
    after = at + len(delimiter)
    if body.startswith(b"--", after):
        return None
    line = _LINE_END.match(body, after)
    if line is None:
        raise FormError("its first line is not the boundary")
    return line.end()


def _head(head: bytes) -> tuple[str, str | None, str | None]:
    """A part's name, filename and content type."""
    found: dict[str, str] = {}
    kind = None
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        match key.strip().lower():
            case b"content-disposition":
                found = options(value.decode("latin-1"))[1]
            case b"content-type":
                kind = value.strip().decode("latin-1")
    if "name" not in found:
        raise FormError("a part has no name")
    return found["name"], found.get("filename", found.get("filename*")), kind


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
