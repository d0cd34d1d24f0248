"""Errors that the server reports to callers, beside those of `tokenfold.inference`."""

# ruff: noqa: N818 - the module's name says that these are errors

from __future__ import annotations

from collections.abc import Sequence

from tokenfold.inference.errors import InvalidRequest, RequestError, Unavailable
from tokenfold.service.scheduling.backends.status import EngineStatus


class UnknownModel(RequestError):
    """No served model has that name."""

    slug = "unknown-model"
    title = "Unknown model"


class UnknownGallery(RequestError):
    """No gallery has that name."""

    slug = "unknown-gallery"
    title = "Unknown gallery"


class UnknownImage(RequestError):
    """The gallery has no image of that id."""

    slug = "unknown-image"
    title = "Unknown image"


class MalformedBody(RequestError):
    """The body cannot be parsed as its content type."""

    slug = "malformed-body"
    title = "Malformed body"


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    slug = "body-timeout"
    outcome = "expired"
    title = "Body not received in time"


class BodyTooLarge(RequestError):
    """The body has more bytes than the server accepts."""

    slug = "body-too-large"
    title = "Body too large"


class UnsupportedMediaType(RequestError):
    """The body is neither a form nor JSON."""

    slug = "unsupported-media-type"
    title = "Unsupported media type"


class HeadTooLarge(RequestError):
    """The headers have more bytes than the server accepts."""

    slug = "head-too-large"
    title = "Headers too large"


class InvalidFilter(InvalidRequest):
    """A metadata filter that cannot be evaluated."""

    slug = "invalid-filter"
    title = "Invalid filter"


class GalleryExists(RequestError):
    """A gallery of that name exists already."""

    slug = "gallery-exists"
    title = "Gallery exists"


class OtherModel(RequestError):
    """The gallery's vectors were made by another model."""

    slug = "other-model"
    title = "Another model's gallery"


class StorageFailed(RequestError):
    """The gallery storage failed, for no fault of the caller."""

    slug = "storage-failed"
    outcome = "error"
    title = "Storage failed"


class StorageFull(RequestError):
    """The gallery storage has no room left."""

    slug = "storage-full"
    outcome = "error"
    title = "Disk full"


class QueueFull(Unavailable):
    """The queue holds as many runs as it may."""

    slug = "queue-full"
    title = "Queue full"


class TooManyBodies(Unavailable):
    """The request bodies in memory leave no room for another."""

    slug = "too-many-bodies"
    title = "Too many bodies"


class Expired(Unavailable):
    """The request's time ran out before its answer was ready."""

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
        engines: state of the TensorRT engines that are built at the start.
    """

    slug = "starting"
    title = "Starting"

    def __init__(
        self, detail: str, *, retry_after: int, engines: Sequence[EngineStatus] = ()
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.engines = tuple(engines)


class WorkerDied(Unavailable):
    """A thread that runs models has ended; only a restart helps."""

    slug = "worker-died"
    title = "A worker died"


class Abandoned(RequestError):
    """The caller went away. Nobody reads this error; it is counted and logged."""

    slug = "abandoned"
    outcome = "abandoned"
    title = "Caller went away"
