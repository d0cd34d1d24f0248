"""A server as `make serve` starts it, for blocks of the documentation and for screenshots."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator

import httpx

from load_tests.server import serving

SAMPLE_IMAGES = 500
ARGUMENTS = ("--sample-gallery",)


@contextlib.contextmanager
def sample_server() -> Iterator[str]:
    """Start a server on a free port; yield HOST:PORT once the sample gallery is filled."""
    with (
        tempfile.TemporaryDirectory() as data,
        serving([*ARGUMENTS, "--data-dir", data]) as service,
    ):
        address = f"{service.address.host}:{service.address.port}"
        _wait_for_gallery(f"http://{address}/v1/galleries/scenes")
        yield address


def _wait_for_gallery(url: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        response = httpx.get(url)
        if response.is_success and response.json()["images"] >= SAMPLE_IMAGES:
            return
        time.sleep(0.2)
    raise TimeoutError(f"the sample gallery has fewer than {SAMPLE_IMAGES} images")
