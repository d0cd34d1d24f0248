"""Sessions of ONNX Runtime for 64-bit ARM, run by qemu's user-mode emulation."""

from __future__ import annotations

import atexit
import os
import struct
import subprocess
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]

VARIABLE = "TOKENFOLD_TEST_AARCH64"
"""Environment variable with the folder that `make test-aarch64` fills; it selects aarch64."""

SYSTEM = Path("/usr/aarch64-linux-gnu")
"""Debian's libraries for aarch64, which come with its cross compiler."""

PROCESSOR = "cortex-a72"
"""The emulated processor: ARMv8.0, so nothing newer than the baseline may run."""

CPUINFO = """processor\t: {at}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""The emulated processor in /proc/cpuinfo, where qemu shows the real one by default."""

_DTYPES: dict[int, type[np.generic]] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.INT64: np.int64,
}
_KINDS = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
_INVALID_ARGUMENT = 2


def enabled() -> bool:
    """Whether the tests of the ops run on aarch64."""
    return VARIABLE in os.environ


class Session:
    """A graph in ONNX Runtime for aarch64, with the interface of `ort.InferenceSession.run`."""

    def __init__(self, model: bytes, threads: int) -> None:
        """Open the graph in the emulated process."""
        self._driver = _driver()
        self._at = self._driver.open(model, threads)

    def run(self, names: None, feeds: Mapping[str, Array]) -> list[Array]:
        """Return all outputs of a run.

        Args:
            names: None; outputs are not chosen.
            feeds: the inputs by name.

        Raises:
            InvalidArgument: ONNX Runtime or an op refuses the inputs.
            RuntimeError: the run failed for another reason.
        """
        assert names is None
        return self._driver.run(self._at, feeds)


class _Driver:
    """The emulated process; see driver.cc for the protocol."""

    def __init__(self, command: list[str | Path]) -> None:
        self._lock = threading.Lock()
        self._sessions = 0
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._replies: IO[bytes] = self._process.stdout

    def close(self) -> None:
        """End the process; it ends by itself when there are no more requests."""
        self._requests.close()
        self._process.wait()
        self._replies.close()

    def open(self, model: bytes, threads: int) -> int:
        with self._lock:
            self._send(b"O" + struct.pack("<I", threads) + _packed(model))
            self._check_status()
            self._sessions += 1
            return self._sessions - 1

    def run(self, session: int, feeds: Mapping[str, Array]) -> list[Array]:
        parts = [b"R" + struct.pack("<II", session, len(feeds))]
        for name, array in feeds.items():
            parts += [_packed(name.encode()), _packed_tensor(np.ascontiguousarray(array))]
        with self._lock:
            self._send(b"".join(parts))
            self._check_status()
            return [self._read_tensor() for _ in range(self._read("<I"))]

    def _send(self, request: bytes) -> None:
        self._requests.write(request)
        self._requests.flush()

    def _check_status(self) -> None:
        code = self._read("<I")
        if code:
            message = self._read_bytes().decode()
            if code == _INVALID_ARGUMENT:
                raise ort.capi.onnxruntime_pybind11_state.InvalidArgument(message)
            raise RuntimeError(message)

    def _read(self, layout: str) -> int:
        contents = self._replies.read(struct.calcsize(layout))
        if len(contents) != struct.calcsize(layout):
            raise RuntimeError(f"the emulated process ended: {self._process.wait()}")
        (value,) = struct.unpack(layout, contents)
        return int(value)

    def _read_bytes(self) -> bytes:
        return self._replies.read(self._read("<Q"))

    def _read_tensor(self) -> Array:
        kind = self._read("<I")
        shape = [self._read("<q") for _ in range(self._read("<I"))]
        return np.frombuffer(self._read_bytes(), _DTYPES[kind]).reshape(shape)


@cache
def _driver() -> _Driver:
    folder = Path(os.environ[VARIABLE])
    (runtime,) = folder.glob("onnxruntime-*/onnxruntime/capi/libonnxruntime.so.*")
    library = folder / "libtokenfold_ort.so"
    emulator: list[str | Path] = ["qemu-aarch64", "-cpu", PROCESSOR, "-L", _root(folder)]
    driver = _Driver([*emulator, folder / "driver" / "driver", runtime, library])
    atexit.register(driver.close)
    return driver


def _root(folder: Path) -> Path:
    """Return a folder whose files the emulated process sees in the place of this system's.

    ONNX Runtime reads /proc/cpuinfo when it is loaded, and fails on that of another architecture.
    """
    root = folder / "root"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    text = "".join(CPUINFO.format(at=at) for at in range(os.cpu_count() or 1))
    (root / "proc" / "cpuinfo").write_text(text)
    if not (root / "lib").exists():
        (root / "lib").symlink_to(SYSTEM / "lib")
    return root


def _packed(contents: bytes) -> bytes:
    return struct.pack("<Q", len(contents)) + contents


def _packed_tensor(array: Array) -> bytes:
    head = struct.pack(f"<II{array.ndim}q", _KINDS[array.dtype], array.ndim, *array.shape)
    return head + _packed(array.tobytes())
