"""What can go wrong, as RFC 9457 problems: one class per kind, with its status, title and slug.

Raised anywhere below a route, an `ApiError` becomes the answer. Whatever else is raised becomes a
500 that says nothing of its inside (`middleware.py`).
"""

# ruff: noqa: N818 - the module's name says that these are errors

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from tokenfold.service.api.schemas.startup import EngineStatus

MEDIA_TYPE = "application/problem+json"
_MOST = 20  # errors of one request
_LONGEST = 100  # characters of what the caller sent, where an error repeats it

PREFIX = "urn:tokenfold:problem:"


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

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

    type: str = Field(description="A name of the kind of error, as a URI.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What happened this time, and what to do.")
    errors: list[FieldError] | None = Field(None, description="Field by field.")
    results: list[ItemProblem] | None = Field(
        None, description="Where every item of a request failed: the problem of each, in order."
    )
    engines: list[EngineStatus] | None = Field(
        None, description="Where a server is starting: those that are built at the start."
    )


class ItemProblem(BaseModel):
    """Stands in the results for an item that failed."""

    problem: Problem


class ApiError(Exception):
    """An error that the caller is told of.

    Attributes:
        status: HTTP status.
        slug: names the kind, in the problem's type.
        title: the kind in words, the same each time.
        outcome: how it is counted in the metrics.
        detail: this occurrence, for a human.
        retry_after: seconds until it is worth trying again.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    outcome: ClassVar[str] = "invalid"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.retry_after = retry_after

    def problem(self) -> Problem:
        """The body that describes it."""
        return Problem(
            type=PREFIX + self.slug,
            title=self.title,
            status=self.status,
            detail=self.detail,
            errors=self.errors or None,
        )

    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def response(self) -> Response:
        """The answer that carries it."""
        return problem_response(self.problem(), self.headers())


class InternalError(ApiError):
    """A fault of ours."""

    outcome = "error"

    def __init__(self, detail: str = "The server failed to answer; its log says why.") -> None:
        super().__init__(detail)


class MalformedBody(ApiError):
    """The body cannot be parsed as what its content type says."""

    status = 400
    slug = "malformed-body"
    title = "Malformed body"


class UnknownModel(ApiError):
    """No served model has that name."""

    status = 404
    slug = "unknown-model"
    title = "Unknown model"


class UnknownGallery(ApiError):
    """No gallery has that name."""

    status = 404
    slug = "unknown-gallery"
    title = "Unknown gallery"


class UnknownImage(ApiError):
    """The gallery has no image of that id."""

    status = 404
    slug = "unknown-image"
    title = "Unknown image"


class BodyTimeout(ApiError):
    """The body did not arrive in time."""

    status = 408
    slug = "body-timeout"
    outcome = "expired"
    title = "Body not received in time"

    def headers(self) -> dict[str, str]:
        """Of the answer, which ends the connection: the rest of the body is not waited for."""
        return super().headers() | {"connection": "close"}


class BodyTooLarge(ApiError):
    """More bytes than the server takes."""

    status = 413
    slug = "body-too-large"
    title = "Body too large"


class UnsupportedMediaType(ApiError):
    """The body is neither a form nor JSON."""

    status = 415
    slug = "unsupported-media-type"
    title = "Unsupported media type"


class InvalidRequest(ApiError):
    """Fields are missing, unknown, or out of range."""

    status = 422
    slug = "invalid-request"
    title = "Invalid request"


class TwoSelectors(InvalidRequest):
    """A request chose its level in more than one way."""

    slug = "two-selectors"
    title = "More than one selector"


class UnknownLevel(InvalidRequest):
    """The model has no level of that name."""

    slug = "unknown-level"
    title = "Unknown level"


class InvalidFilter(InvalidRequest):
    """A filter on metadata that says nothing that can be looked up."""

    slug = "invalid-filter"
    title = "Invalid filter"


class HeadTooLarge(ApiError):
    """More bytes of headers than the server takes."""

    status = 431
    slug = "head-too-large"
    title = "Headers too large"


class StorageFailed(ApiError):
    """What keeps the galleries gave an error that is no fault of the caller."""

    status = 500
    slug = "storage-failed"
    outcome = "error"
    title = "Storage failed"


class StorageFull(ApiError):
    """No room is left for what is to be kept."""

    status = 507
    slug = "storage-full"
    outcome = "error"
    title = "Disk full"


class BudgetError(ApiError):
    """No level meets what the request asks for."""

    status = 409


class LatencyBudget(BudgetError):
    """Even the fastest level takes longer than `max_latency_ms`."""

    slug = "latency-budget"
    title = "No level is fast enough"


class AccuracyBudget(BudgetError):
    """Even the best level was measured below `min_accuracy`."""

    slug = "accuracy-budget"
    title = "No level is accurate enough"


class NoProfile(BudgetError):
    """The bundle's accuracy was never measured."""

    slug = "no-accuracy-profile"
    title = "Accuracy not measured"


class GalleryExists(ApiError):
    """A gallery has that name already."""

    status = 409
    slug = "gallery-exists"
    title = "Gallery exists"


class OtherModel(ApiError):
    """The gallery's vectors are those of another model."""

    status = 409
    slug = "other-model"
    title = "Another model's gallery"


class ImageError(ApiError):
    """An image that cannot be used."""

    status = 422
    slug = "bad-image"
    title = "Bad image"


class ImageFormat(ImageError):
    """No image, or of a format that is not read."""

    status = 415
    slug = "image-format"
    title = "Not an image of a known format"


class ImageTooLarge(ImageError):
    """More pixels than the server decodes."""

    status = 413
    slug = "image-too-large"
    title = "Image too large"


class Unavailable(ApiError):
    """Not now."""

    status = 503
    outcome = "rejected"


class QueueFull(Unavailable):
    """As many runs wait as may."""

    slug = "queue-full"
    title = "Queue full"


class TooManyBodies(Unavailable):
    """The bodies that are in memory leave no room for another."""

    slug = "too-many-bodies"
    title = "Too many bodies"


class TooSlowNow(Unavailable):
    """The queue is too long for the time the request has."""

    slug = "deadline"
    title = "Cannot answer in time"


class Expired(Unavailable):
    """The request's time ran out before its answer was there."""

    slug = "expired"
    outcome = "expired"
    title = "Out of time"


class Draining(Unavailable):
    """The server is shutting down."""

    slug = "draining"
    title = "Shutting down"


class Starting(Unavailable):
    """The models are not loaded yet.

    Attributes:
        engines: those that are built at the start.
    """

    slug = "starting"
    title = "Starting"

    def __init__(
        self, detail: str, *, retry_after: int, engines: Sequence[EngineStatus] = ()
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.engines = list(engines)

    def problem(self) -> Problem:
        """See `ApiError.problem`."""
        return super().problem().model_copy(update={"engines": self.engines or None})


class WorkerDied(Unavailable):
    """A thread that runs models has ended; only a restart helps."""

    slug = "worker-died"
    title = "A worker died"


class Abandoned(ApiError):
    """The caller went away. Nobody reads this one; it is counted and logged."""

    status = 499
    slug = "abandoned"
    outcome = "abandoned"
    title = "Caller went away"


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as an HTTP answer."""
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def short(text: str) -> str:
    """What a caller sent, cut to what an error may repeat of it."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def field_errors(found: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """Pydantic's errors in the caller's terms: no inputs echoed, no links."""
    listed = []
    for error in islice(found, _MOST):
        place = ".".join(short(str(part)) for part in error["loc"] if part != "body")
        message = str(error["msg"]).removeprefix("Value error, ")
        listed.append(FieldError(field=place, message=message))
    return listed


def invalid(found: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Pydantic's errors as one problem."""
    listed = field_errors(found)
    detail = "; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in listed[:5])
    return InvalidRequest(detail, errors=listed)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every error of an app with a problem.

    Args:
        routes: those that FastAPI keeps within a router.
    """

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors()).response()

    async def on_http(request: Request, error: Exception) -> Response:
        # Starlette's own: no such route, or no such method on it.
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        path = short(request.url.path)
        known = {
            404: f"There is nothing at {path}.",
            405: f"{path} does not answer {short(request.method)}.",
        }
        headers = dict(error.headers or {})
        if "Allow" in headers:
            headers["Allow"] = ", ".join(_methods(request, [*app.routes, *routes]))
        problem = Problem(
            type="about:blank",
            title=status.phrase,
            status=status,
            detail=known.get(error.status_code, str(error.detail)),
        )
        return problem_response(problem, headers)

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)


def _methods(request: Request, routes: Iterable[BaseRoute]) -> list[str]:
    """Those that a path answers: Starlette names those of the first of its routes alone."""
    found = {
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return sorted(found)
