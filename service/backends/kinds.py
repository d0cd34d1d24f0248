"""The backends that there are, the fastest first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from export.bundle import Bundle
from export.cuda import device, session
from export.plugins.onnxruntime.library import Device
from service.backends import onnxruntime
from service.backends.backend import Backend


class Kind(NamedTuple):
    """A way to run models.

    Attributes:
        name: what `--backend` calls it, and metrics do.
        device: what it runs on.
        load: makes the backend of a bundle. It may raise whatever it likes.
        missing: why it cannot be used on this machine; None if it can.
        unfit: why it cannot run a bundle; None if it can.
        used: bytes of the device's own memory that are in use; None where it has none, or where it
            has failed.
    """

    name: str
    device: Device
    load: Callable[[Bundle], Backend]
    missing: Callable[[], str | None] = lambda: None
    unfit: Callable[[Bundle], str | None] = lambda _: None
    used: Callable[[], int | None] = lambda: None


def _no_int8(bundle: Bundle) -> str | None:
    if bundle.manifest.precision == "int8":
        return f"{bundle.manifest.name} is an int8 bundle, which is for the CPU"
    return None


def _used() -> int | None:
    try:
        return device.memory().used
    except device.CudaError:
        # What it was to run goes to the next backend; this is no reason not to.
        return None


CUDA = Kind(
    "cuda",
    "cuda",
    load=partial(onnxruntime.load, device="cuda"),
    missing=session.missing,
    unfit=_no_int8,
    used=_used,
)
CPU = Kind("cpu", "cpu", load=onnxruntime.load)

KINDS = (CUDA, CPU)
