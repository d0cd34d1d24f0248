"""An HTTP client for load: one prepared request, sent over one connection that stays open.

It shares the processor with the service it measures: to send prepared bytes, and to read of the
answer no more than status and length, costs a fifth of what http.client does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CLOSES = re.compile(rb"\r\nconnection: *close")
# After a refusal, so that a full or absent service is not asked without pause; seconds.
PAUSE = 0.02
LARGEST_HEAD = 65_536


class TargetError(ValueError):
    """An address that is not to be loaded."""


@dataclass(frozen=True)
class Target:
    """Where the requests go."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str, *, allow_remote: bool = False) -> Self:
        """Read http://host:port.

        Raises:
            TargetError: no plain HTTP address, or one of another machine where that is not allowed.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise TargetError(f"{url} is no http://host:port")
        try:
            target = cls(parts.hostname, parts.port or 80)
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise TargetError(f"{url}: {error}") from error
        addresses = {str(entry[4][0]) for entry in found}
        local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
        if not (local or allow_remote):
            raise TargetError(f"{target.host} is not this machine; --allow-remote loads it anyway")
        return target


def post(
    target: Target,
    path: str,
    images: bytes | Sequence[bytes],
    fields: Mapping[str, str | Sequence[str]],
    *,
    file: str = "image",
) -> bytes:
    """The bytes of a multipart POST of one image or several.

    Args:
        images: encoded, such as a JPEG file's content.
        fields: further form fields, some of them repeated.
        file: the form's name of each image.
    """
    # Random, so that no image holds it.
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, values in fields.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    for image in [images] if isinstance(images, bytes) else images:
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="{file}"; filename="image"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        )
        parts.append(head.encode() + image + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
        f"content-type: multipart/form-data; boundary={boundary}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """One caller: sends its requests in turn, and says how each went.

    For one thread. A connection that breaks is opened again for the next request.
    """

    def __init__(self, target: Target, requests: Sequence[bytes], *, timeout: float = 30.0) -> None:
        """Prepare; the first request connects.

        Args:
            requests: whole HTTP requests, sent round and round.
            timeout: seconds to wait for any byte.
        """
        self._target = target
        self._requests = requests
        self._sent = 0
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def __call__(self) -> str | None:
        """Send the next request. Returns None for status 200, or the status, or what failed."""
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        try:
            status = self._exchange(request)
        except TimeoutError:
            self.close()
            return "timeout"
        except OSError:
            self.close()
            time.sleep(PAUSE)
            return "connection"
        if status == 200:
            return None
        time.sleep(PAUSE)
        return str(status)

    def close(self) -> None:
        """Close the connection; a further call opens another."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _exchange(self, request: bytes) -> int:
        if self._socket is None:
            self._socket = socket.create_connection(
                (self._target.host, self._target.port), self._timeout
            )
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        answer = self._receive(self._socket)
        while (head_end := answer.find(b"\r\n\r\n")) < 0:
            if len(answer) > LARGEST_HEAD:
                raise ConnectionError("the answer has no end of its head")
            answer += self._receive(self._socket)
        head = answer[:head_end].lower()
        length = _LENGTH.search(head)
        if not head.startswith(b"http/1.1 ") or length is None:
            raise ConnectionError("the answer is not HTTP/1.1 with a content-length")
        missing = int(length[1]) - (len(answer) - head_end - 4)
        while missing > 0:
            missing -= len(self._receive(self._socket))
        if _CLOSES.search(head):
            self.close()
        return int(head[9:12])

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        received = connection.recv(LARGEST_HEAD)
        if not received:
            raise ConnectionError("closed in the middle of an answer")
        return received
