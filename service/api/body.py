"""Request bodies: a form or JSON, validated by a pydantic model."""

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

_MAX_FIELDS = 100  # fields of a body
_MAX_TEXT = 65_536  # bytes of a text field of a form

# Bodies have long values, not many. Millions of empty values would keep the event loop busy for
# seconds; counting commas is fast.
_MAX_COMMAS = 50_000


class Route(APIRoute):
    """A route that reads its body with `read` and returns a response; FastAPI only documents it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


async def read(request: Request, model: type[B]) -> B:
    """Read and validate a body.

    The texts of a form are converted to the types of the fields; JSON values must have them.

    Raises:
        UnsupportedMediaType: the body is neither multipart/form-data nor application/json.
        MalformedBody: the body does not have the format of its content type.
        InvalidRequest: the fields are not those of `model`.
        BodyTimeout: the body did not arrive in time.
        Abandoned: the caller went away while sending.
    """
    kind, parameters = form.options(request.headers.get("content-type", ""))
    try:
        if kind == "application/json":
            return _parse_json(await _receive(request), model)
        if kind == "multipart/form-data":
            fields = _parse_form(await _receive(request), parameters.get("boundary", ""), model)
            return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields(_errors(error, model)) from None
    except ClientDisconnect as error:
        raise Abandoned("The caller went away while sending.") from error
    reason = f"not {shortened(kind)!r}" if kind else "and the content-type header is missing"
    raise UnsupportedMediaType(
        f"The body must be multipart/form-data or application/json, {reason}."
    )


def _errors(error: ValidationError, model: type[BaseModel]) -> Iterator[Mapping[str, Any]]:
    """Yield pydantic's errors, with the names of the known fields where one is unknown."""
    for details in error.errors(include_url=False, include_input=False):
        match details["type"]:
            case "extra_forbidden":
                fields = ", ".join(model.model_fields)
                yield {"loc": details["loc"], "msg": f"unknown field; known: {fields}"}
            case "too_short":
                minimum, length = details["ctx"]["min_length"], details["ctx"]["actual_length"]
                yield {"loc": details["loc"], "msg": f"at least {minimum} needed, not {length}"}
            case _:
                yield details


async def _receive(request: Request) -> bytes:
    seconds: float = request.app.state.core.settings.body_timeout
    try:
        async with asyncio.timeout(seconds):
            return await request.body()
    except TimeoutError:
        raise BodyTimeout(f"The body was not received in {seconds:g} s.") from None


def _parse_json(body: bytes, model: type[B]) -> B:
    if body.count(b",") > _MAX_COMMAS:
        raise InvalidRequest(f"The body has more than {_MAX_COMMAS} commas.")
    try:
        fields = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body is JSON, but not an object.")
    if len(fields) > _MAX_FIELDS:
        # Each unknown field would be reported as an error.
        raise InvalidRequest(
            f"The body has {len(fields)} fields; at most {_MAX_FIELDS} are allowed."
        )
    return model.model_validate(fields, strict=True)


def _parse_form(body: bytes, boundary: str, model: type[BaseModel]) -> dict[str, Any]:
    kinds = repeated(model)
    fields: dict[str, Any] = {}
    try:
        for part in form.parts(body, boundary):
            name = part.name
            if len(fields) > _MAX_FIELDS:
                raise InvalidRequest(f"The body has more than {_MAX_FIELDS} fields.")
            if kinds.get(name) == "files":
                if part.filename is None and part.kind is None:
                    # Usually a forgotten @.
                    raise _wrong(name, f"must be a file (curl: -F {name}=@path)")
                fields.setdefault(name, []).append(part.content)
            elif part.filename is not None:
                raise _wrong(name, "must be text, not a file")
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
    if len(part.content) > _MAX_TEXT:
        raise _wrong(part.name, f"is longer than {_MAX_TEXT} bytes")
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise _wrong(part.name, "is not UTF-8") from None


def _wrong(name: str, message: str) -> RequestError:
    return invalid_fields([{"loc": (name,), "msg": message}])


@cache
def repeated(model: type[BaseModel]) -> dict[str, Literal["files", "texts", "names"]]:
    """Return the kind of each field that may be repeated. Commas may join names."""
    kinds: dict[str, Literal["files", "texts", "names"]] = {}
    for name, field in model.model_fields.items():
        if typing.get_origin(field.annotation) is list:
            types = typing.get_args(typing.get_args(field.annotation)[0])
            kinds[name] = "files" if bytes in types else "texts" if str in types else "names"
    return kinds
