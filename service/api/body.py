"""A request's body, a form or JSON, as a checked model."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from tokenfold.inference.errors import InvalidRequest, RequestError, shortened
from tokenfold.service.api import form
from tokenfold.service.api.problems import invalid_fields
from tokenfold.service.errors import Abandoned, BodyTimeout, MalformedBody, UnsupportedMediaType

B = TypeVar("B", bound=BaseModel)

_MOST = 100  # fields of a body
_LONGEST_TEXT = 65_536  # bytes of a form's field that is no file

# Images and texts are long, not many. Millions of empty ones would keep the event loop busy for
# seconds, and it is quick to count what stands between them.
_MOST_COMMAS = 50_000


class Route(APIRoute):
    """A route that reads its body with `read`, and answers with a response: FastAPI only documents
    it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


async def read(request: Request, model: type[B]) -> B:
    """The body as `model`.

    A form gives text, which is converted to the fields' types; JSON has to have them.

    Raises:
        UnsupportedMediaType: neither multipart/form-data nor application/json.
        MalformedBody: not what its content type says.
        InvalidRequest: the fields are not those of `model`.
        BodyTimeout: it did not arrive in time.
        Abandoned: the caller went away in the middle.
    """
    kind, found = form.options(request.headers.get("content-type", ""))
    try:
        if kind == "application/json":
            return _parse_json(await _receive(request), model)
        if kind == "multipart/form-data":
            fields = _parse_form(await _receive(request), found.get("boundary", ""), model)
            return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields(_told(error, model)) from None
    except ClientDisconnect as error:
        raise Abandoned("The caller went away while sending.") from error
    said = f"not {shortened(kind)!r}" if kind else "and its content-type header is missing"
    raise UnsupportedMediaType(f"The body is multipart/form-data or application/json, {said}.")


def _told(error: ValidationError, model: type[BaseModel]) -> Iterator[Mapping[str, Any]]:
    """Pydantic's errors, but for what it does not tell a caller: which fields there are."""
    for found in error.errors(include_url=False, include_input=False):
        match found["type"]:
            case "extra_forbidden":
                fields = ", ".join(model.model_fields)
                yield {"loc": found["loc"], "msg": f"is no field here; known: {fields}"}
            case "too_short":
                least, given = found["ctx"]["min_length"], found["ctx"]["actual_length"]
                yield {"loc": found["loc"], "msg": f"at least {least} needed, not {given}"}
            case _:
                yield found


async def _receive(request: Request) -> bytes:
    seconds: float = request.app.state.core.settings.body_timeout
    try:
        async with asyncio.timeout(seconds):
            return await request.body()
    except TimeoutError:
        raise BodyTimeout(f"The body was not received in {seconds:g} s.") from None


def _parse_json(body: bytes, model: type[B]) -> B:
    if body.count(b",") > _MOST_COMMAS:
        raise InvalidRequest(f"The body has more than {_MOST_COMMAS} commas.")
    try:
        found = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidRequest("The body is JSON, but no object of fields.")
    if len(found) > _MOST:
        # Each unknown field would become an error of its own.
        raise InvalidRequest(f"The body has {len(found)} fields.")
    return model.model_validate(found, strict=True)


def _parse_form(body: bytes, boundary: str, model: type[BaseModel]) -> dict[str, Any]:
    kinds = repeated(model)
    fields: dict[str, Any] = {}
    try:
        for part in form.parts(body, boundary):
            name = part.name
            if len(fields) > _MOST:
                raise InvalidRequest(f"The body has more than {_MOST} fields.")
            if kinds.get(name) == "files":
                if part.filename is None and part.kind is None:
                    # Most often a forgotten @.
                    raise _wrong(name, f"is a file (curl: -F {name}=@path)")
                fields.setdefault(name, []).append(part.content)
            elif part.filename is not None:
                raise _wrong(name, "is text, not a file")
            elif kinds.get(name) == "texts":
                fields.setdefault(name, []).append(_text(part))
            elif name in kinds:
                fields.setdefault(name, []).extend(_text(part).split(","))
            elif name in fields:
                raise _wrong(name, "is given twice")
            else:
                fields[name] = _text(part)
    except form.FormError as error:
        raise MalformedBody(f"The form cannot be read: {error}.") from None
    return fields


def _text(part: form.Part) -> str:
    if len(part.content) > _LONGEST_TEXT:
        raise _wrong(part.name, f"is longer than {_LONGEST_TEXT} bytes")
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise _wrong(part.name, "is not UTF-8") from None


def _wrong(name: str, message: str) -> RequestError:
    return invalid_fields([{"loc": (name,), "msg": message}])


@cache
def repeated(model: type[BaseModel]) -> dict[str, Literal["files", "texts", "names"]]:
    """The fields that may be repeated, and of what: names may also share one, with commas."""
    found: dict[str, Literal["files", "texts", "names"]] = {}
    for name, field in model.model_fields.items():
        if typing.get_origin(field.annotation) is list:
            of = typing.get_args(typing.get_args(field.annotation)[0])
            found[name] = "files" if bytes in of else "texts" if str in of else "names"
    return found
