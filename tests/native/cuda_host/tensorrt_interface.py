"""TensorRT's structures for ctypes, as `native/tensorrt/nvinfer_interface.h` has them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

import torch

Members = list[tuple[str, Any]]
Sizes = Sequence[int]
Attributes = Mapping[str, Any]

# TensorRT's numbers.
TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.int32: 3,
    torch.bfloat16: 7,
    torch.int64: 8,
}
FLOAT_FIELD, INT_FIELD, LONG_FIELD = 1, 5, 10
BUILD, RUNTIME = 0, 1
LINEAR, VECTORS = 0, 2


class Field(ctypes.Structure):
    """PluginField."""

    _fields_: ClassVar[Members] = [
        ("name", c_char_p),
        ("data", c_void_p),
        ("type", c_int32),
        ("length", c_int32),
    ]


class Collection(ctypes.Structure):
    """PluginFieldCollection."""

    _fields_: ClassVar[Members] = [("count", c_int32), ("fields", POINTER(Field))]


class Dims(ctypes.Structure):
    """Dims64."""

    _fields_: ClassVar[Members] = [("count", c_int32), ("sizes", c_int64 * 8)]

    @classmethod
    def of(cls, sizes: Sizes) -> Dims:
        return cls(len(sizes), (c_int64 * 8)(*sizes))

    @property
    def tuple(self) -> tuple[int, ...]:
        return tuple(self.sizes[: self.count])


class Desc(ctypes.Structure):
    """PluginTensorDesc."""

    _fields_: ClassVar[Members] = [
        ("dims", Dims),
        ("type", c_int32),
        ("format", c_int32),
        ("scale", c_float),
    ]


class DynamicDesc(ctypes.Structure):
    """DynamicPluginTensorDesc."""

    _fields_: ClassVar[Members] = [
        ("desc", Desc),
        *((name, Dims) for name in ("least", "most", "usual")),
    ]


class Bounds(ctypes.Structure):
    """Least and most sizes of a tensor."""

    _fields_: ClassVar[Members] = [("least", Dims), ("most", Dims)]


def fields(attributes: Attributes) -> Collection:
    """As TensorRT's parser gives a node's: a float or an int, or (type, array) of any."""
    made = []
    for name, given in attributes.items():
        if isinstance(given, tuple):
            kind, array = given
        else:
            is_float = isinstance(given, float)
            kind = FLOAT_FIELD if is_float else INT_FIELD
            array = ((c_float if is_float else c_int32) * 1)(given)
        data = ctypes.cast(array, c_void_p)
        made.append((Field(name.encode(), data, kind, len(array)), array))
    collection = Collection(len(made), (Field * len(made))(*(field for field, _ in made)))
    collection.kept = [array for _, array in made]
    return collection


def desc(shape: Sizes, dtype: torch.dtype, layout: int = LINEAR) -> Desc:
    """Of a tensor."""
    return Desc(Dims.of(shape), TYPES[dtype], layout, 1.0)


def bounds(of: tuple[Sizes, Sizes]) -> Bounds:
    least, most = of
    return Bounds(Dims.of(least), Dims.of(most))


def dynamic(descs: Sequence[Desc]) -> ctypes.Array[DynamicDesc]:
    """Sizes of axes are known from the third on, as in a graph: images and tokens are any."""
    made = (DynamicDesc * len(descs))()
    for out, each in zip(made, descs, strict=True):
        sizes = each.dims.tuple
        unknown = [-1, -1, *sizes[2:]][: len(sizes)]
        out.desc = Desc(Dims.of(unknown), each.type, each.format, each.scale)
        out.least, out.usual, out.most = Dims.of([1] * len(sizes)), each.dims, each.dims
    return made
