"""Errors that are reported to the caller of a request, without reference to HTTP."""

# ruff: noqa: N818 - the module's name says that these are errors

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

_MAX_LISTED = 5  # fields that an error's text names
_MAX_ECHO = 100  # characters of the caller's input that an error repeats


class FieldError(NamedTuple):
    """An invalid field of a request.

    Attributes:
        field: its path, such as `labels.3`.
        message: what is wrong with it, such as `is empty`.
    """

    field: str
    message: str


class RequestError(Exception):
    """An error that is reported to the caller.

    Attributes:
        slug: identifier of the kind of error.
        title: the kind of error in words, the same for every occurrence.
        outcome: label of the request in the metrics.
        detail: description of this occurrence, for people.
        errors: the invalid fields, if any.
        retry_after: seconds until it is worth trying again, if that may help.
    """

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    outcome: ClassVar[str] = "invalid"

    def __init__(
        self, detail: str, *, errors: Sequence[FieldError] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        # Results carry errors across processes. Exceptions pickle their positional arguments alone.
        return type(self).__new__, (type(self), self.detail), self.__dict__


class InternalError(RequestError):
    """A fault of the program."""

    outcome = "error"

    def __init__(self, detail: str = "The server failed to answer; its log says why.") -> None:
        super().__init__(detail)


class InvalidRequest(RequestError):
    """Fields are missing, unknown or out of range."""

    slug = "invalid-request"
    title = "Invalid request"

    @classmethod
    def of_fields(cls, errors: Iterable[FieldError]) -> InvalidRequest:
        """Return one error for several invalid fields."""
        listed = list(errors)
        shown = (f"{e.field}: {e.message}" if e.field else e.message for e in listed[:_MAX_LISTED])
        return cls("; ".join(shown), errors=listed)


class EmptyText(InvalidRequest):
    """A text without words.

    Attributes:
        index: its position among the request's texts.
    """

    def __init__(self, field: str, index: int) -> None:
        error = FieldError(f"{field}.{index}", "is empty")
        super().__init__(f"{error.field}: {error.message}", errors=[error])
        self.index = index


class TwoSelectors(InvalidRequest):
    """A request selects its level in more than one way."""

    slug = "two-selectors"
    title = "More than one selector"


class UnknownLevel(InvalidRequest):
    """The model has no level of that name."""

    slug = "unknown-level"
    title = "Unknown level"


class BudgetError(RequestError):
    """No level meets the budget of the request."""


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


class ImageError(RequestError):
    """An image that cannot be used."""

    slug = "bad-image"
    title = "Bad image"


class ImageFormat(ImageError):
    """A file that is no image, or an image of an unsupported format."""

    slug = "image-format"
    title = "Not an image of a known format"


class ImageTooLarge(ImageError):
    """An image with more pixels than may be decoded."""

    slug = "image-too-large"
    title = "Image too large"


class Unavailable(RequestError):
    """The request cannot be answered at the moment."""

    outcome = "rejected"


class TooSlowNow(Unavailable):
    """The queue is too long for the time that the request has."""

    slug = "deadline"
    title = "Cannot answer in time"


def shortened(text: str) -> str:
    """Return the caller's input, cut to the length that an error may repeat."""
    return text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "…"
