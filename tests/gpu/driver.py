"""The CUDA driver through ctypes: memory, launches, graphs and timing. Needs no CUDA toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_uint,
    c_uint64,
    c_ulonglong,
    c_void_p,
    cast,
)
from functools import cache
from typing import Any, ClassVar, NamedTuple

from tests.native.cuda_host import interface

LIBRARY = "libcuda.so.1"

# CUdevice_attribute, CUfunction_attribute and CUresult.
_PROCESSORS, _MAJOR, _MINOR = 16, 75, 76
_MAX_SHARED = 8
UNSUPPORTED_PTX = 222

# CUlaunchAttributeID and CUstreamCaptureMode.
_CLUSTER = 4
_THREAD_LOCAL = 1

# Dynamic shared memory that a kernel may use without setting an attribute.
_SHARED_BYTES = 48 * 1024

_BUFFER_POINTER, _BUFFER_SIZE = 1, 2


class DriverError(RuntimeError):
    """A driver call failed.

    Attributes:
        code: CUresult.
    """

    def __init__(self, code: int, call: str) -> None:
        super().__init__(f"{call} failed with CUDA error {code}")
        self.code = code


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, of a cluster."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("id", c_int),
        ("padding", c_uint),
        ("cluster", c_uint * 16),
    ]


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("blocks", c_uint * 3),
        ("threads", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(_Attribute)),
        ("attribute_count", c_uint),
    ]


def missing() -> str | None:
    """Return the reason why no kernel can run here; None if one can."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"no GPU: {LIBRARY} is missing"
    code = library.cuInit(0)
    return f"no GPU: cuInit fails with CUDA error {code}" if code else None


class Graph(NamedTuple):
    """An instantiated CUDA graph."""

    executable: c_void_p


class Device:
    """The first GPU, in its primary context, which PyTorch uses too."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._call("cuInit", c_uint(0))
        device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(device), c_int(0))
        self._device = device
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        # The legacy default stream cannot be captured.
        self._stream = c_void_p()
        self._call("cuStreamCreate", byref(self._stream), c_uint(0))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise DriverError(code, name)

    def name(self) -> str:
        text = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", text, c_int(100), self._device)
        return text.value.decode()

    def version(self) -> str:
        """Return the newest CUDA version that the driver supports, such as 13.0."""
        number = c_int()
        self._call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def architecture(self) -> int:
        """Return the compute capability, such as 90 for 9.0."""
        return 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)

    def processors(self) -> int:
        """Return the number of streaming multiprocessors."""
        return self._attribute(_PROCESSORS)

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), c_int(attribute), self._device)
        return value.value

    def allocate(self, count: int) -> int:
        """Allocate `count` bytes, or 1 if it is 0, at a multiple of 256; return the address."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(count, 1)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def upload(self, to: int, source: int, count: int) -> None:
        """Copy `count` bytes from host memory."""
        if count:
            self._call("cuMemcpyHtoD_v2", c_uint64(to), c_void_p(source), c_size_t(count))

    def download(self, to: int, source: int, count: int) -> None:
        """Copy `count` bytes to host memory, after all launches have ended."""
        if count:
            self._call("cuMemcpyDtoH_v2", c_void_p(to), c_uint64(source), c_size_t(count))

    def copy(self, to: int, source: int, count: int) -> None:
        """Start to copy `count` bytes on the device."""
        self._call(
            "cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(count), self._stream
        )

    def load(self, binary: bytes) -> c_void_p:
        """Load a module from a cubin or PTX."""
        module = c_void_p()
        self._call("cuModuleLoadData", byref(module), c_char_p(binary))
        return module

    def function(self, module: c_void_p, name: str) -> c_void_p:
        function = c_void_p()
        self._call("cuModuleGetFunction", byref(function), module, c_char_p(name.encode()))
        return function

    def launch(self, function: c_void_p, parameters: interface.Launch) -> None:
        """Launch a kernel, without waiting."""
        if parameters.shared_bytes > _SHARED_BYTES:
            self._call(
                "cuFuncSetAttribute", function, c_int(_MAX_SHARED), c_int(parameters.shared_bytes)
            )
        size = c_size_t(parameters.argument_bytes)
        extra = (c_void_p * 5)(
            _BUFFER_POINTER,
            ctypes.addressof(parameters) + interface.Launch.arguments.offset,
            _BUFFER_SIZE,
            cast(byref(size), c_void_p).value,
            None,
        )
        cluster = _Attribute(_CLUSTER, 0, (parameters.cluster, 1, 1))
        config = _Config(
            (parameters.blocks, 1, 1),
            (parameters.threads, 1, 1),
            parameters.shared_bytes,
            self._stream,
            ctypes.pointer(cluster),
            int(parameters.cluster > 1),
        )
        no_parameters = POINTER(c_void_p)()
        self._call("cuLaunchKernelEx", byref(config), function, no_parameters, extra)

    def capture(self, work: Callable[[], object]) -> Graph:
        """Record the launches and copies of `work` as a graph, without running them."""
        self._call("cuStreamBeginCapture_v2", self._stream, c_int(_THREAD_LOCAL))
        graph, executable = c_void_p(), c_void_p()
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", self._stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(executable), graph, c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return Graph(executable)

    def replay(self, graph: Graph) -> None:
        """Launch a graph, without waiting."""
        self._call("cuGraphLaunch", graph.executable, self._stream)

    def free_graph(self, graph: Graph) -> None:
        """Free a graph."""
        self._call("cuGraphExecDestroy", graph.executable)

    def wait(self) -> None:
        """Wait for all launches, and raise their errors."""
        self._call("cuCtxSynchronize")

    def seconds(self, work: Callable[[], object], *, repeats: int = 50, warmups: int = 5) -> float:
        """Return the mean time of one of many calls in a row, in seconds.

        This is the device's time; or the time to launch from Python, if the device is faster.

        Args:
            work: launches on this device's stream, or on the default stream, which waits for it.
        """
        events = [c_void_p(), c_void_p()]
        for event in events:
            self._call("cuEventCreate", byref(event), c_uint(0))
        for _ in range(warmups):
            work()
        self._call("cuEventRecord", events[0], self._stream)
        for _ in range(repeats):
            work()
        self._call("cuEventRecord", events[1], self._stream)
        self.wait()
        milliseconds = c_float()
        self._call("cuEventElapsedTime", byref(milliseconds), *events)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        return milliseconds.value / 1000 / repeats


@cache
def device() -> Device:
    """Return the first GPU.

    Raises:
        DriverError: there is no GPU; see `missing`.
    """
    return Device()
