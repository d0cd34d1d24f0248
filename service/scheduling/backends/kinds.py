"""The backends that there are, the fastest first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.tensorrt import process, runtime
from tokenfold.runtime.tensorrt.process import ProgressCallback
from tokenfold.runtime.tensorrt.spec import unsupported_reason
from tokenfold.service.scheduling.backends import loading
from tokenfold.service.scheduling.backends.backend import Backend


def _nothing(_: Bundle, __: ProgressCallback, ___: threading.Event) -> None:
    return


class BackendKind(NamedTuple):
    """A way to run models.

    Attributes:
        name: what `--backend` calls it, and metrics do.
        device: what it runs on.
        load: makes the backend of a bundle. It may raise whatever it likes.
        missing: why it cannot be used on this machine; None if it can.
        unfit: why it cannot run a bundle; None if it can.
        used: bytes of the device's own memory that are in use; None where it has none, or where it
            has failed.
        unprepared: names of what has to be built, on this machine, before it can load a bundle.
        prepare: builds that, which takes minutes; see `process.build`. It may raise whatever it
            likes.
    """

    name: str
    device: Literal["cpu", "cuda"]
    load: Callable[[Bundle], Backend]
    missing: Callable[[], str | None] = lambda: None
    unfit: Callable[[Bundle], str | None] = lambda _: None
    used: Callable[[], int | None] = lambda: None
    unprepared: Callable[[Bundle], Sequence[str]] = lambda _: ()
    prepare: Callable[[Bundle, ProgressCallback, threading.Event], None] = _nothing


def _used() -> int | None:
    try:
        return device.memory().used
    except device.CudaError:
        # What it was to run goes to the next backend; this is no reason not to.
        return None


CUDA = BackendKind(
    "cuda",
    "cuda",
    load=partial(loading.load, device="cuda"),
    missing=session.missing,
    unfit=lambda bundle: bundle.manifest.cpu_only,
    used=_used,
)
CPU = BackendKind("cpu", "cpu", load=loading.load)


def all_kinds(engines: Path) -> tuple[BackendKind, ...]:
    """All of them.

    Args:
        engines: the folder in which TensorRT's engines are kept.
    """
    return (tensorrt(engines), CUDA, CPU)


def tensorrt(engines: Path) -> BackendKind:
    """TensorRT, whose engines are kept in a folder."""
    return BackendKind(
        "tensorrt",
        "cuda",
        load=partial(loading.load, device="tensorrt", engines=engines),
        missing=runtime.missing,
        unfit=unsupported_reason,
        used=_used,
        unprepared=partial(_unbuilt, engines),
        prepare=partial(_build, engines),
    )


def _unbuilt(folder: Path, bundle: Bundle) -> Sequence[str]:
    return runtime.missing_engines(bundle, folder)


def _build(folder: Path, bundle: Bundle, told: ProgressCallback, stopping: threading.Event) -> None:
    process.build(process.command_line(bundle.folder, folder), told, stopping)
