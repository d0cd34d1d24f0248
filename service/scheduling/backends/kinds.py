"""Kinds of backends, the fastest first: TensorRT, ONNX Runtime on a GPU, ONNX Runtime on a CPU."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.tensorrt import process, runtime
from tokenfold.runtime.tensorrt.process import ProgressCallback
from tokenfold.runtime.tensorrt.spec import unsupported_reason


class BackendKind(ABC):
    """A way to run models.

    Attributes:
        name: its value of `--backend`, and its label in metrics.
        device: the device that it runs on.
    """

    name: str
    device: Literal["cpu", "cuda"]

    @abstractmethod
    def load(self, bundle: Bundle) -> Backend:
        """Load a bundle. Any exception may be raised."""

    def missing(self) -> str | None:
        """Return why this machine cannot use it; None if it can."""
        return None

    def unfit(self, bundle: Bundle) -> str | None:  # noqa: ARG002 - for subclasses
        """Return why it cannot run a bundle; None if it can."""
        return None

    def used_memory(self) -> int | None:
        """Return the used bytes of the device's own memory; None if it has none or has failed."""
        return None

    def unprepared(self, bundle: Bundle) -> Sequence[str]:  # noqa: ARG002 - for subclasses
        """Return the names of what has to be built before it can load a bundle."""
        return ()

    def prepare(  # noqa: B027 - nothing by default
        self, bundle: Bundle, on_progress: ProgressCallback, stopping: threading.Event
    ) -> None:
        """Build what `unprepared` lists, which takes minutes; see `process.build`."""


class CpuKind(BackendKind):
    """ONNX Runtime on the CPU."""

    name = "cpu"
    device = "cpu"

    def load(self, bundle: Bundle) -> Backend:
        """See `BackendKind.load`."""
        return sessions.load(bundle)


class CudaKind(BackendKind):
    """ONNX Runtime on a GPU."""

    name = "cuda"
    device = "cuda"

    def load(self, bundle: Bundle) -> Backend:
        """See `BackendKind.load`."""
        return sessions.load(bundle, "cuda")

    def missing(self) -> str | None:
        """See `BackendKind.missing`."""
        return session.missing()

    def unfit(self, bundle: Bundle) -> str | None:
        """See `BackendKind.unfit`."""
        return bundle.manifest.cpu_only

    def used_memory(self) -> int | None:
        """See `BackendKind.used_memory`."""
        try:
            return device.memory().used
        except device.CudaError:
            return None  # a failed GPU is no reason to fail here: its models move on


class TensorRTKind(CudaKind):
    """TensorRT engines on a GPU."""

    name = "tensorrt"

    def __init__(self, engines: Path) -> None:
        """Create the kind.

        Args:
            engines: folder of the engines.
        """
        self._engines = engines

    def load(self, bundle: Bundle) -> Backend:
        """See `BackendKind.load`."""
        return sessions.load(bundle, "tensorrt", engines=self._engines)

    def missing(self) -> str | None:
        """See `BackendKind.missing`."""
        return runtime.missing()

    def unfit(self, bundle: Bundle) -> str | None:
        """See `BackendKind.unfit`."""
        return unsupported_reason(bundle)

    def unprepared(self, bundle: Bundle) -> Sequence[str]:
        """See `BackendKind.unprepared`."""
        return runtime.missing_engines(bundle, self._engines)

    def prepare(
        self, bundle: Bundle, on_progress: ProgressCallback, stopping: threading.Event
    ) -> None:
        """See `BackendKind.prepare`."""
        command = process.command_line(bundle.folder, self._engines)
        process.build(command, on_progress, stopping)


CUDA = CudaKind()
CPU = CpuKind()


def all_kinds(engines: Path) -> tuple[BackendKind, ...]:
    """Return every kind, the fastest first.

    Args:
        engines: folder of TensorRT engines.
    """
    return (TensorRTKind(engines), CUDA, CPU)
