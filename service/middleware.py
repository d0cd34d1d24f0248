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

from service.errors import BodyTooLarge, Draining, InternalError
from service.logs import request_id

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
    """Refuses bodies of too many bytes: by their header, else when the count gets there."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = BodyTooLarge(f"The body may have at most {self._limit:,} bytes.")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            await error.response()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._limit:
                    raise error
            return message

        await self._app(scope, counted, send)
