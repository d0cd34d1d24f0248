"""The TensorRT plugins on the CPU, called as TensorRT calls them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.native.cuda_host import tensorrt
from tests.native.cuda_host.ops import Guarded, aligned
from tests.native.cuda_host.tensorrt_interface import (
    BUILD,
    RUNTIME,
    TYPES,
    Attributes,
    Bounds,
    Collection,
    Desc,
    Sizes,
    bounds,
    desc,
    dynamic,
    fields,
)

_DTYPES = {number: dtype for dtype, number in TYPES.items()}


class PluginError(RuntimeError):
    """A plugin rejected its arguments; the message is the plugin's."""


@cache
def load() -> ctypes.CDLL:
    """Load the plugins with the fake TensorRT."""
    host = ctypes.CDLL(str(tensorrt.build_host()))
    host.TokenfoldTensorRtProblem.restype = c_char_p
    host.tokenfold_host_allocations.restype = c_size_t
    host.tokenfold_host_names.restype = POINTER(Collection)
    host.tokenfold_host_fields.restype = POINTER(Collection)
    host.tokenfold_host_text.restype = c_char_p
    host.tokenfold_host_workspace.restype = c_size_t
    for name in ("create", "clone", "attach"):
        getattr(host, f"tokenfold_host_{name}").restype = c_void_p
    return host


def problem() -> str:
    """Return the last error message of a plugin, unless it was returned before."""
    message: bytes = load().TokenfoldTensorRtProblem()
    return message.decode()


def creators() -> Iterator[tuple[str, str, str]]:
    """Yield the name, version and namespace of each op in the library."""
    out = (c_char_p * 3)()
    index = 0
    while load().tokenfold_host_creator(index, out):
        name, version, namespace = (text.decode() for text in out if text is not None)
        yield name, version, namespace
        index += 1


def names(op: str) -> list[tuple[str, int]]:
    """Return the names and types of an op's attributes."""
    collection = load().tokenfold_host_names(op.encode()).contents
    return [(field.name.decode(), field.type) for field in collection.fields[: collection.count]]


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Make all allocations of the plugins fail."""
    load().tokenfold_host_out_of_memory(1)
    try:
        yield
    finally:
        load().tokenfold_host_out_of_memory(0)


def allocations() -> int:
    """Return the number of allocations of the plugins so far."""
    return int(load().tokenfold_host_allocations())


class Plugin:
    """The plugin of a node.

    The constructor and all methods raise PluginError when the plugin rejects their arguments.
    """

    def __init__(self, pointer: int | None) -> None:
        if pointer is None:
            raise PluginError(problem())
        self._pointer = c_void_p(pointer)

    @classmethod
    def create(cls, op: str, attributes: Attributes | Collection, phase: int = BUILD) -> Plugin:
        collection = attributes if isinstance(attributes, Collection) else fields(attributes)
        return cls(load().tokenfold_host_create(op.encode(), ctypes.byref(collection), phase))

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            load().tokenfold_host_destroy(self._pointer)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(load(), f"tokenfold_host_{name}")(self._pointer, *arguments)

    def _succeed(self, name: str, *arguments: Any) -> None:
        if code := self._call(name, *arguments):
            raise PluginError(f"{problem()} (code {code})")

    def clone(self) -> Plugin:
        return Plugin(self._call("clone"))

    def attach(self) -> Plugin:
        """Return the plugin of an execution context."""
        return Plugin(self._call("attach"))

    def serialized(self) -> Collection:
        """Return the fields that an engine stores. The plugin owns them, and must outlive them."""
        collection: Collection = self._call("fields").contents
        return collection

    @property
    def text(self) -> str:
        """Text that identifies the plugin, in messages and in the timing cache."""
        text: bytes = self._call("text")
        return text.decode()

    @property
    def outputs(self) -> int:
        return int(self._call("outputs"))

    def types(self, inputs: Sequence[torch.dtype], outputs: int | None = None) -> list[torch.dtype]:
        """Return the types of the outputs."""
        count = self.outputs if outputs is None else outputs
        numbers = (c_int32 * len(inputs))(*(TYPES[dtype] for dtype in inputs))
        out = (c_int32 * count)()
        self._succeed("types", numbers, len(numbers), out, count)
        return [_DTYPES[number] for number in out]

    def bounds(
        self,
        shapes: Sequence[tuple[Sizes, Sizes]],
        counts: Sequence[tuple[Sizes, Sizes]],
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the minimum and maximum sizes of the outputs.

        Args:
            shapes: minimum and maximum sizes of each input.
            counts: minimum and maximum values of each shape input.
        """
        sizes, values = (
            (Bounds * len(limits))(*map(bounds, limits)) for limits in (shapes, counts)
        )
        out = (Bounds * self.outputs)()
        self._succeed("shapes", sizes, len(sizes), values, len(values), out, len(out))
        return [(output.least.tuple, output.most.tuple) for output in out]

    def shapes(self, shapes: Sequence[Sizes], counts: Sequence[Sizes]) -> list[tuple[int, ...]]:
        """Return the shapes of the outputs."""
        limits = ([(sizes, sizes) for sizes in group] for group in (shapes, counts))
        return [minimum for minimum, _ in self.bounds(*limits)]

    def supports(self, index: int, descs: Sequence[Desc], inputs: int) -> bool:
        """Whether the plugin supports the type and format of the tensor at `index`."""
        dynamic_descs = dynamic(descs)
        return bool(self._call("takes", index, dynamic_descs, inputs, len(descs) - inputs))

    def configure(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> None:
        """Configure the plugin for these shapes, and any smaller ones."""
        inp, out = dynamic(inputs), dynamic(outputs)
        self._succeed("configure", inp, len(inp), out, len(out))

    def workspace(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> int:
        """Return the workspace size in bytes for these shapes, and any smaller ones."""
        inp, out = dynamic(inputs), dynamic(outputs)
        return int(self._call("workspace", inp, len(inp), out, len(out)))

    def change(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> None:
        """Change the shapes of the next run."""
        inp, out = (Desc * len(inputs))(*inputs), (Desc * len(outputs))(*outputs)
        self._succeed("change", inp, len(inp), out, len(out))

    def enqueue(
        self,
        descs: tuple[Sequence[Desc], Sequence[Desc]],
        pointers: tuple[Sequence[int | None], Sequence[int | None]],
        workspace: int | None,
    ) -> None:
        """Run the plugin.

        Raises:
            AssertionError: the plugin allocated memory.
        """
        input_descs, output_descs = ((Desc * len(group))(*group) for group in descs)
        input_pointers, output_pointers = ((c_void_p * len(group))(*group) for group in pointers)
        before = allocations()
        self._succeed(
            "enqueue",
            input_descs,
            output_descs,
            input_pointers,
            output_pointers,
            c_void_p(workspace),
        )
        assert allocations() == before, "memory was allocated in enqueue"


def run(
    op: str, inputs: Sequence[Tensor], counts: Sequence[Sizes] = (), **attributes: float
) -> list[Tensor]:
    """Run an op in an engine built for exactly these sizes, and return its outputs.

    Outputs that only encode counts have no memory, and are left out.

    Raises:
        PluginError: the plugin rejects its arguments.
    """
    inputs = [aligned(tensor) for tensor in inputs]
    node = Plugin.create(op, attributes)
    types = node.types([tensor.dtype for tensor in inputs])
    shapes = node.shapes([tensor.shape for tensor in inputs], counts)
    input_descs = [desc(tensor.shape, tensor.dtype) for tensor in inputs]
    output_descs = [desc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    configured = node.clone()
    descs = [*input_descs, *output_descs]
    assert all(configured.supports(index, descs, len(inputs)) for index in range(len(descs)))
    configured.configure(input_descs, output_descs)
    space = Guarded([configured.workspace(input_descs, output_descs)], torch.uint8)

    engine = Plugin.create(op, configured.serialized(), RUNTIME)
    context = engine.attach()
    assert context.text == node.text
    del node, configured, engine
    context.change(input_descs, output_descs)
    # The op's real outputs have at least two axes: images and tokens.
    out = [
        Guarded(shape, dtype) if len(shape) > 1 else None
        for shape, dtype in zip(shapes, types, strict=True)
    ]
    input_pointers = [tensor.data_ptr() for tensor in inputs]
    output_pointers = [None if guarded is None else guarded.pointer for guarded in out]
    context.enqueue((input_descs, output_descs), (input_pointers, output_pointers), space.pointer)
    space.result()
    return [guarded.result() for guarded in out if guarded is not None]
