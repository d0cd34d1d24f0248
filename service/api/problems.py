"""Errors as HTTP responses: RFC 9457 problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from tokenfold.inference import errors as inference
from tokenfold.inference.errors import RequestError, shortened
from tokenfold.service import errors
from tokenfold.service.scheduling.backends.status import EngineStatus

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:tokenfold:problem:"

_MAX_ERRORS = 20  # field errors of one response

_STATUS: Mapping[type[RequestError], int] = {
    RequestError: 500,
    inference.InvalidRequest: 422,
    inference.BudgetError: 409,
    inference.ImageError: 422,
    inference.ImageFormat: 415,
    inference.ImageTooLarge: 413,
    inference.Unavailable: 503,
    errors.MalformedBody: 400,
    errors.UnknownModel: 404,
    errors.UnknownGallery: 404,
    errors.UnknownImage: 404,
    errors.BodyTimeout: 408,
    errors.GalleryExists: 409,
    errors.OtherModel: 409,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.HeadTooLarge: 431,
    errors.Abandoned: 499,
    errors.StorageFailed: 500,
    errors.StorageFull: 507,
}


class ProblemField(BaseModel):
    """An invalid field of a request."""

    field: str = Field(examples=["reduction"])
    message: str = Field(examples=["Input should be less than or equal to 1"])


class Problem(BaseModel):
    """An error, RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": PREFIX + "unknown-level",
                    "title": "Unknown level",
                    "status": 422,
                    "detail": "cifar10 has no level 'turbo'; known: "
                    "exact, high, balanced, fast, fastest.",
                }
            ]
        }
    )

    type: str = Field(description="The kind of error, as a URI.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="Description of this occurrence, and what to do about it.")
    errors: list[ProblemField] | None = Field(None, description="The invalid fields.")
    results: list[ItemProblem] | None = Field(
        None, description="If every item of a request failed: the problem of each, in order."
    )
    engines: list[EngineStatus] | None = Field(
        None, description="While a server starts: the engines that are built at the start."
    )


class ItemProblem(BaseModel):
    """The result of an item that failed."""

    problem: Problem


def status_of(kind: type[RequestError]) -> int:
    """Return the HTTP status of a kind of error."""
    return next(_STATUS[base] for base in kind.__mro__ if base in _STATUS)


def problem_of(error: RequestError) -> Problem:
    """Return the body that describes an error."""
    listed = [ProblemField(field=field, message=message) for field, message in error.errors]
    engines = list(error.engines) if isinstance(error, errors.Starting) else []
    return Problem(
        type=PREFIX + error.slug,
        title=error.title,
        status=status_of(type(error)),
        detail=error.detail,
        errors=listed or None,
        engines=engines or None,
    )


def headers_of(error: RequestError) -> dict[str, str]:
    """Return the response headers of an error."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, errors.BodyTimeout):
        headers["connection"] = "close"  # the rest of the body is not waited for
    return headers


def error_response(error: RequestError) -> Response:
    """Return the response that reports an error."""
    return problem_response(problem_of(error), headers_of(error))


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as an HTTP response."""
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def invalid_fields(errors: Iterable[Mapping[str, Any]]) -> inference.InvalidRequest:
    """Return pydantic's errors as one error, without the inputs and links they carry."""
    listed = []
    for error in islice(errors, _MAX_ERRORS):
        field = ".".join(shortened(str(part)) for part in error["loc"] if part != "body")
        message = str(error["msg"]).removeprefix("Value error, ")
        listed.append(inference.FieldError(field, message))
    return inference.InvalidRequest.of_fields(listed)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every error of an app with a problem.

    Args:
        app: the app.
        routes: the routes of its routers, which FastAPI does not list itself.
    """

    async def on_request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(invalid_fields(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        # Starlette's own errors: an unknown route, or a method that the route does not support.
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        path = shortened(request.url.path)
        details = {
            404: f"There is nothing at {path}.",
            405: f"{path} does not support {shortened(request.method)}.",
        }
        headers = dict(error.headers or {})
        if "Allow" in headers:
            headers["Allow"] = ", ".join(_methods(request, [*app.routes, *routes]))
        problem = Problem(
            type="about:blank",
            title=status.phrase,
            status=status,
            detail=details.get(error.status_code, str(error.detail)),
        )
        return problem_response(problem, headers)

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)


def _methods(request: Request, routes: Iterable[BaseRoute]) -> list[str]:
    """Return the methods of a path: Starlette names those of its first route alone."""
    methods = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return sorted(methods)
