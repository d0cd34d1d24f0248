"""HTTP client for load: sends prepared requests over one connection that stays open.

The client shares the processor with the service it measures. Sending prepared bytes, and reading
only the status and length of a response, costs a fifth of what http.client costs.
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
# Seconds of pause after an error, so that a full or absent service is not flooded with requests.
PAUSE = 0.02
MAX_HEAD_BYTES = 65_536


class AddressError(ValueError):
    """The load generators do not accept an address; the message says why."""


@dataclass(frozen=True)
class ServiceAddress:
    """Host and port of the service under load."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str, *, allow_remote: bool = False) -> Self:
        """Parse http://host:port.

        Raises:
            AddressError: the URL is not plain HTTP, or it names another machine without
                `allow_remote`.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise AddressError(f"{url} is not of the form http://host:port")
        try:
            address = cls(parts.hostname, parts.port or 80)
            entries = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise AddressError(f"{url}: {error}") from error
        addresses = {str(entry[4][0]) for entry in entries}
        local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
        if not (local or allow_remote):
            raise AddressError(
                f"{address.host} is not this machine; --allow-remote permits other machines"
            )
        return address


def post(
    address: ServiceAddress,
    path: str,
    images: bytes | Sequence[bytes],
    fields: Mapping[str, str | Sequence[str]],
    *,
    file_field: str = "image",
) -> bytes:
    """Return the bytes of a multipart POST request with one image or several.

    Args:
        images: encoded images, such as the content of a JPEG file.
        fields: further form fields; a sequence repeats its field.
        file_field: name of the form field of each image.
    """
    # Random, so that no image contains it.
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, values in fields.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    for image in [images] if isinstance(images, bytes) else images:
        head = (
            f"--{boundary}\r\n"
            f'content-disposition: form-data; name="{file_field}"; filename="image"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        )
        parts.append(head.encode() + image + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
        f"content-type: multipart/form-data; boundary={boundary}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """A caller that sends its requests in turn and returns the outcome of each.

    Not thread-safe. A broken connection is reopened for the next request.
    """

    def __init__(
        self, address: ServiceAddress, requests: Sequence[bytes], *, timeout: float = 30.0
    ) -> None:
        """Prepare the client; the first request connects.

        Args:
            requests: complete HTTP requests, sent in a cycle.
            timeout: maximum seconds to wait for data.
        """
        self._address = address
        self._requests = requests
        self._sent_count = 0
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def __call__(self) -> str | None:
        """Send the next request; return None for status 200, otherwise the status or failure."""
        request = self._requests[self._sent_count % len(self._requests)]
        self._sent_count += 1
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
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _exchange(self, request: bytes) -> int:
        if self._socket is None:
            self._socket = socket.create_connection(
                (self._address.host, self._address.port), self._timeout
            )
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        response = self._receive(self._socket)
        while (head_end := response.find(b"\r\n\r\n")) < 0:
            if len(response) > MAX_HEAD_BYTES:
                raise ConnectionError(f"response head is longer than {MAX_HEAD_BYTES} bytes")
            response += self._receive(self._socket)
        head = response[:head_end].lower()
        length = _LENGTH.search(head)
        if not head.startswith(b"http/1.1 ") or length is None:
            raise ConnectionError("response is not HTTP/1.1 with a content-length")
        missing = int(length[1]) - (len(response) - head_end - 4)
        while missing > 0:
            missing -= len(self._receive(self._socket))
        if _CLOSES.search(head):
            self.close()
        return int(head[9:12])

    @staticmethod
    def _receive(connection: socket.socket) -> bytes:
        data = connection.recv(MAX_HEAD_BYTES)
        if not data:
            raise ConnectionError("connection closed in the middle of a response")
        return data
