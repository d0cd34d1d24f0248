"""A request's body, a form or JSON, as a checked model."""

from __future__ import annotations

import typing
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import Abandoned, MalformedBody, UnsupportedMediaType, invalid

B = TypeVar("B", bound=BaseModel)

# Parts of a form that are no files.
_MAX_FIELDS = 100


class _InMemory(MultiPartParser):
    # The body is bounded already (middleware.BodyLimit). A file on disk would cost a thread switch
    # for every 64 KB.
    spool_max_size = 1 << 62


async def read(request: Request, model: type[B], *, max_files: int) -> B:
    """The body as `model`.

    A form gives text, which is converted to the fields' types; JSON has to have them.

    Args:
        max_files: files that a form may hold.

    Raises:
        UnsupportedMediaType: neither multipart/form-data nor application/json.
        MalformedBody: not what its content type says.
        InvalidRequest: the fields are not those of `model`.
        Abandoned: the caller went away in the middle.
    """
    kind = parse_options_header(request.headers.get("content-type"))[0]
    try:
        if kind == b"application/json":
            return _parse_json(await request.body(), model)
        if kind == b"multipart/form-data":
            return model.model_validate(await _form(request, model, max_files))
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None
    except ClientDisconnect as error:
        raise Abandoned("The caller went away while sending.") from error
    said = f"not {kind.decode('latin-1')!r}" if kind else "and its content-type header is missing"
    raise UnsupportedMediaType(f"The body is multipart/form-data or application/json, {said}.")


def _parse_json(body: bytes, model: type[B]) -> B:
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise MalformedBody(f"The body is not valid JSON: {found[0]['msg']}.") from None
        raise


async def _form(request: Request, model: type[BaseModel], max_files: int) -> dict[str, Any]:
    async with aclosing(request.stream()) as stream:
        parser = _InMemory(request.headers, stream, max_files=max_files, max_fields=_MAX_FIELDS)
        try:
            parts = (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise MalformedBody(f"The form cannot be read: {error.message}") from None
    lists = _lists(model)
    fields: dict[str, Any] = {}
    for name, part in parts:
        value: str | bytes = part if isinstance(part, str) else _content(part)
        if name not in lists:
            if name in fields:
                raise _wrong(name, "is given twice")
            if isinstance(value, bytes):
                raise _wrong(name, "is text, not a file")
            fields[name] = value
            continue
        takes_files = lists[name]
        if isinstance(value, bytes) != takes_files:
            raise _wrong(name, "is a file (curl: -F name=@path)" if takes_files else "is text")
        values = [value] if isinstance(value, bytes) else value.split(",")
        fields.setdefault(name, []).extend(values)
    return fields


def _wrong(name: str, message: str) -> Exception:
    return invalid([{"loc": (name,), "msg": message}])


def _content(part: UploadFile) -> bytes:
    with part.file as file:
        return file.read()


def _lists(model: type[BaseModel]) -> dict[str, bool]:
    """The fields that may be repeated, and whether they are files."""
    return {
        name: bytes in typing.get_args(typing.get_args(field.annotation)[0])
        for name, field in model.model_fields.items()
        if typing.get_origin(field.annotation) is list
    }
