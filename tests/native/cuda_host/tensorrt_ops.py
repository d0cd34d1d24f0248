"""The plugins for TensorRT on tensors of this machine, called as TensorRT calls them."""

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
    """What an op refused, in its own words."""


@cache
def load() -> ctypes.CDLL:
    """The plugins, and what plays TensorRT."""
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
    """What an op said last, if it was not asked for yet."""
    said: bytes = load().TokenfoldTensorRtProblem()
    return said.decode()


def creators() -> Iterator[tuple[str, str, str]]:
    """Name, version and namespace of each op that the library has."""
    out = (c_char_p * 3)()
    at = 0
    while load().tokenfold_host_creator(at, out):
        name, version, namespace = (text.decode() for text in out if text is not None)
        yield name, version, namespace
        at += 1


def names(op: str) -> list[tuple[str, int]]:
    """Names and types of an op's attributes."""
    found = load().tokenfold_host_names(op.encode()).contents
    return [(each.name.decode(), each.type) for each in found.fields[: found.count]]


@contextmanager
def out_of_memory() -> Iterator[None]:
    """There is no memory for the plugins."""
    load().tokenfold_host_out_of_memory(1)
    try:
        yield
    finally:
        load().tokenfold_host_out_of_memory(0)


def allocations() -> int:
    """How often the plugins have asked for memory."""
    return int(load().tokenfold_host_allocations())


class Plugin:
    """A node's plugin.

    Raises:
        PluginError: it refuses the attributes, as any method what is wrong with what it is given.
    """

    def __init__(self, pointer: int | None) -> None:
        if pointer is None:
            raise PluginError(problem())
        self._pointer = c_void_p(pointer)

    @classmethod
    def create(cls, op: str, attributes: Attributes | Collection, phase: int = BUILD) -> Plugin:
        given = attributes if isinstance(attributes, Collection) else fields(attributes)
        return cls(load().tokenfold_host_create(op.encode(), ctypes.byref(given), phase))

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            load().tokenfold_host_destroy(self._pointer)

    def _call(self, name: str, *given: Any) -> Any:
        return getattr(load(), f"tokenfold_host_{name}")(self._pointer, *given)

    def _succeed(self, name: str, *given: Any) -> None:
        if code := self._call(name, *given):
            raise PluginError(f"{problem()} (code {code})")

    def clone(self) -> Plugin:
        return Plugin(self._call("clone"))

    def attach(self) -> Plugin:
        """As for an execution context."""
        return Plugin(self._call("attach"))

    def serialized(self) -> Collection:
        """The fields that an engine keeps of it. They are its own: it must outlive them."""
        found: Collection = self._call("fields").contents
        return found

    @property
    def text(self) -> str:
        """What is said of it, and its timings are kept by."""
        said: bytes = self._call("text")
        return said.decode()

    @property
    def outputs(self) -> int:
        return int(self._call("outputs"))

    def types(self, given: Sequence[torch.dtype], outputs: int | None = None) -> list[torch.dtype]:
        """Those of the outputs."""
        count = self.outputs if outputs is None else outputs
        own, out = (c_int32 * len(given))(*(TYPES[each] for each in given)), (c_int32 * count)()
        self._succeed("types", own, len(own), out, count)
        return [_DTYPES[number] for number in out]

    def bounds(
        self,
        shapes: Sequence[tuple[Sizes, Sizes]],
        counts: Sequence[tuple[Sizes, Sizes]],
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Least and most sizes of the outputs, from those of the inputs and from counts."""
        own, values = ((Bounds * len(of))(*map(bounds, of)) for of in (shapes, counts))
        out = (Bounds * self.outputs)()
        self._succeed("shapes", own, len(own), values, len(values), out, len(out))
        return [(each.least.tuple, each.most.tuple) for each in out]

    def shapes(self, shapes: Sequence[Sizes], counts: Sequence[Sizes]) -> list[tuple[int, ...]]:
        """Those of the outputs."""
        doubled = ([(each, each) for each in of] for of in (shapes, counts))
        return [least for least, _ in self.bounds(*doubled)]

    def takes(self, at: int, descs: Sequence[Desc], inputs: int) -> bool:
        """Whether it has a kernel for the tensor at a place among inputs and outputs."""
        given = dynamic(descs)
        return bool(self._call("takes", at, given, inputs, len(descs) - inputs))

    def configure(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> None:
        """For these shapes, and any smaller ones."""
        own, out = dynamic(inputs), dynamic(outputs)
        self._succeed("configure", own, len(own), out, len(out))

    def workspace(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> int:
        """Bytes for these shapes, and any smaller ones."""
        own, out = dynamic(inputs), dynamic(outputs)
        return int(self._call("workspace", own, len(own), out, len(out)))

    def change(self, inputs: Sequence[Desc], outputs: Sequence[Desc]) -> None:
        """To these shapes."""
        own, out = (Desc * len(inputs))(*inputs), (Desc * len(outputs))(*outputs)
        self._succeed("change", own, len(own), out, len(out))

    def enqueue(
        self,
        descs: tuple[Sequence[Desc], Sequence[Desc]],
        pointers: tuple[Sequence[int | None], Sequence[int | None]],
        workspace: int | None,
    ) -> None:
        """Run.

        Raises:
            AssertionError: it has asked for memory.
        """
        own, out = ((Desc * len(of))(*of) for of in descs)
        given, made = ((c_void_p * len(of))(*of) for of in pointers)
        before = allocations()
        self._succeed("enqueue", own, out, given, made, c_void_p(workspace))
        assert allocations() == before, "memory was allocated in enqueue"


def run(
    op: str, inputs: Sequence[Tensor], counts: Sequence[Sizes] = (), **attributes: float
) -> list[Tensor]:
    """An op's outputs, from an engine that was built for just these sizes.

    Outputs that note counts are left out: they have no memory.

    Raises:
        PluginError: it refuses what it is given.
    """
    inputs = [aligned(each) for each in inputs]
    node = Plugin.create(op, attributes)
    types = node.types([each.dtype for each in inputs])
    shapes = node.shapes([each.shape for each in inputs], counts)
    own = [desc(each.shape, each.dtype) for each in inputs]
    made = [desc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    built = node.clone()
    assert all(built.takes(at, [*own, *made], len(own)) for at in range(len(own) + len(made)))
    built.configure(own, made)
    space = Guarded([built.workspace(own, made)], torch.uint8)

    engine = Plugin.create(op, built.serialized(), RUNTIME)
    context = engine.attach()
    assert context.text == node.text
    del node, built, engine
    context.change(own, made)
    # An op's own outputs have an axis of images and one of tokens.
    out = [
        Guarded(shape, dtype) if len(shape) > 1 else None
        for shape, dtype in zip(shapes, types, strict=True)
    ]
    given = [each.data_ptr() for each in inputs]
    pointers = [None if each is None else each.pointer for each in out]
    context.enqueue((own, made), (given, pointers), space.pointer)
    space.result()
    return [each.result() for each in out if each is not None]
