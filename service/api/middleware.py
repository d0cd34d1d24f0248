"""ASGI middleware around every request: request ids, access log, size limits, and a last resort."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from itertools import count

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenfold.inference.errors import InternalError
from tokenfold.service.api.problems import error_response
from tokenfold.service.errors import BodyTooLarge, Draining, TooManyBodies
from tokenfold.service.logs import request_id

logger = logging.getLogger(__name__)
access = logging.getLogger("tokenfold.access")

HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PROCESS = secrets.token_hex(8)
_count = count(1)


class RequestContext:
    """Gives each request an id (the caller's, if it is valid) and a line in the access log.

    An unexpected exception becomes a 500 that reveals nothing about it.
    """

    def __init__(self, app: ASGIApp, *, log: bool = True) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requested = Headers(scope=scope).get(HEADER, "")
        current = requested if _ID.fullmatch(requested) else f"{_PROCESS}-{next(_count):x}"
        token = request_id.set(current)
        begun = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = current
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server ends before the answer is ready; uvicorn would answer with a 500. The task
            # ends after this, so that the cancellation need not propagate.
            if status is not None:
                raise
            error = Draining("The server was shut down before the answer was ready.", retry_after=1)
            await error_response(error)(scope, receive, send_with_id)
        except Exception:
            logger.exception("unexpected error")
            if status is not None:
                raise  # a part of the answer has been sent: the connection has to break
            await error_response(InternalError())(scope, receive, send_with_id)
        finally:
            if self._log:
                access.info(
                    "%s %s",
                    scope["method"],
                    scope["path"],
                    extra={
                        "status": status,
                        "ms": round((time.perf_counter() - begun) * 1000, 2),
                    },
                )
            request_id.reset(token)


class BodyLimit:
    """Refuses bodies that are too large: by their header, or once too many bytes have arrived.

    Bodies stay in memory until they are answered. Their total is limited too, by the bytes that
    have arrived.

    The errors are raised where the body is read, so that they are counted like any other.
    """

    def __init__(self, app: ASGIApp, *, limit: int, total: int) -> None:
        """Wrap an app.

        Args:
            app: the app.
            limit: bytes of a body.
            total: bytes of all bodies in memory.
        """
        self._app = app
        self._limit = limit
        self._total = total
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        large = declared.isdecimal() and int(declared) > self._limit
        too_large = f"The body may have at most {self._limit:,} bytes."
        received = 0

        async def counted() -> Message:
            nonlocal received
            if large:
                # It is not received: a caller that waits for `100 Continue` sends nothing.
                raise BodyTooLarge(too_large)
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                self._held += size
                if received > self._limit:
                    raise BodyTooLarge(too_large)
                if self._held > self._total:
                    raise TooManyBodies(
                        f"All request bodies may have at most {self._total:,} bytes together.",
                        retry_after=1,
                    )
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= received
