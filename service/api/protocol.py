"""uvicorn's HTTP protocol with a header-size limit.

uvicorn would keep and parse headers of any length, and every other request would wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenfold.service.api.problems import MEDIA_TYPE, problem_of, status_of
from tokenfold.service.errors import HeadTooLarge

MAX_HEAD = 65_536  # bytes of a request's first line and headers
# Seconds during which the rest of a refused request is read and dropped. If the connection were
# closed at once, the caller would not see the answer.
_LINGER = 1.0


class BoundedHead(HttpToolsProtocol):
    """Answers requests with too long a head with 431, and closes the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._received = 0  # bytes that arrived before the end of the head
        self._refused = False

    def data_received(self, data: bytes) -> None:
        """See HttpToolsProtocol."""
        if self._refused:
            return
        if self._in_head:
            self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        received, self._received = self._received, 0
        self._in_head = False
        # A head that arrived in few bytes need not be measured. The bytes that arrived may include
        # a part of the body, and are unknown for a head that follows another request's body.
        if not 0 < received <= MAX_HEAD:
            length = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if length > MAX_HEAD:
                self._refused = True
                raise ValueError("the head is too long")  # the parser stops; see send_400_response
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """See HttpToolsProtocol."""
        if self._refused:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self._refused = True
        error = HeadTooLarge(f"The first line and the headers may have at most {MAX_HEAD:,} bytes.")
        body = problem_of(error).model_dump_json(exclude_none=True).encode()
        head = (
            f"HTTP/1.1 {status_of(HeadTooLarge)} Request Header Fields Too Large\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        asyncio.get_running_loop().call_later(_LINGER, self.transport.close)
