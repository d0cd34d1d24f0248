"""HTTP as uvicorn speaks it, but for heads without end: it would keep and parse them whatever their
length, and everybody else would wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenfold.service.errors import MEDIA_TYPE, HeadTooLarge

LONGEST = 65_536  # bytes of a request's first line and headers
# Seconds in which what a refused caller still sends is read and forgotten: it would not see the
# answer if the connection were closed on what it sends.
_LINGER = 1.0


class BoundedHead(HttpToolsProtocol):
    """Refuses requests with too long a head, with 431, and ends the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._received = 0  # bytes of pieces that brought no end of the head
        self._refused = False

    def data_received(self, data: bytes) -> None:
        """See HttpToolsProtocol."""
        if self._refused:
            return
        if self._in_head:
            self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > LONGEST and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        received, self._received = self._received, 0
        self._in_head = False
        # A head that came in few bytes need not be measured; what came may be more of a body, and
        # is not known of a head behind another request's body.
        if not 0 < received <= LONGEST:
            length = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if length > LONGEST:
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
        error = HeadTooLarge(f"The first line and the headers may have at most {LONGEST:,} bytes.")
        body = error.problem().model_dump_json(exclude_none=True).encode()
        head = (
            f"HTTP/1.1 {error.status} Request Header Fields Too Large\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        asyncio.get_running_loop().call_later(_LINGER, self.transport.close)
