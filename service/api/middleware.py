"""Around every request, in plain ASGI: its id, its log line, its size, and the last resort."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from itertools import count

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenfold.service.errors import BodyTooLarge, Draining, InternalError, TooManyBodies
from tokenfold.service.logs import request_id

logger = logging.getLogger(__name__)
access = logging.getLogger("service.access")

HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PROCESS = secrets.token_hex(8)
_count = count(1)


class RequestContext:
    """Gives each request an id (the caller's, if it is a decent one) and a line in the log.

    What nothing else has caught becomes a 500 that says nothing of its inside.
    """

    def __init__(self, app: ASGIApp, *, log: bool = True) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        current = given if _ID.fullmatch(given) else f"{_PROCESS}-{next(_count):x}"
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
            # The server ends before the answer is there: uvicorn would call it an internal error.
            # The task is over after this, so that the cancellation need not go on.
            if status is not None:
                raise
            error = Draining("The server was shut down before the answer was there.", retry_after=1)
            await error.response()(scope, receive, send_with_id)
        except Exception:
            logger.exception("unexpected error")
            if status is not None:
                raise  # half an answer is out: the connection has to break
            await InternalError().response()(scope, receive, send_with_id)
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
    """Refuses bodies of too many bytes: by their header, else when the count gets there.

    Bodies are kept until they are answered. What all of them hold is limited too, by the bytes that
    came: a header that only promises many takes no room.

    The errors are raised where the body is read, so that they are counted like any other.
    """

    def __init__(self, app: ASGIApp, *, limit: int, total: int) -> None:
        """Args:
        limit: bytes of a body.
        total: bytes of all bodies at once.
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
        said = f"The body may have at most {self._limit:,} bytes."
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            if large:
                # Not even received: a caller that expects 100 is to send nothing.
                raise BodyTooLarge(said)
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                seen += size
                self._held += size
                if seen > self._limit:
                    raise BodyTooLarge(said)
                if self._held > self._total:
                    raise TooManyBodies(
                        f"The bodies of all requests may have {self._total:,} bytes at once.",
                        retry_after=1,
                    )
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= seen
