"""TensorRT's structures of `native/tensorrt/nvinfer_interface.h` for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

import torch

Members = list[tuple[str, Any]]
Sizes = Sequence[int]
Attributes = Mapping[str, Any]

# TensorRT's enumerators.
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
    """Minimum and maximum sizes of a tensor."""

    _fields_: ClassVar[Members] = [("least", Dims), ("most", Dims)]


def fields(attributes: Attributes) -> Collection:
    """Return attributes as plugin fields, like those that TensorRT's parser makes from a node.

    Args:
        attributes: each value is a float, an int, or a pair (field type, ctypes array).
    """
    pairs = []
    for name, value in attributes.items():
        if isinstance(value, tuple):
            kind, array = value
        else:
            is_float = isinstance(value, float)
            kind = FLOAT_FIELD if is_float else INT_FIELD
            array = ((c_float if is_float else c_int32) * 1)(value)
        data = ctypes.cast(array, c_void_p)
        pairs.append((Field(name.encode(), data, kind, len(array)), array))
    collection = Collection(len(pairs), (Field * len(pairs))(*(field for field, _ in pairs)))
    # Keep the arrays alive as long as the collection.
    collection.arrays = [array for _, array in pairs]
    return collection


def desc(shape: Sizes, dtype: torch.dtype, layout: int = LINEAR) -> Desc:
    """Return the description of a tensor."""
    return Desc(Dims.of(shape), TYPES[dtype], layout, 1.0)


def bounds(limits: tuple[Sizes, Sizes]) -> Bounds:
    """Return the bounds for minimum and maximum sizes."""
    minimum, maximum = limits
    return Bounds(Dims.of(minimum), Dims.of(maximum))


def dynamic(descs: Sequence[Desc]) -> ctypes.Array[DynamicDesc]:
    """Return dynamic descriptions, whose first two axes (images and tokens) are unknown."""
    dynamic_descs = (DynamicDesc * len(descs))()
    for out, static_desc in zip(dynamic_descs, descs, strict=True):
        sizes = static_desc.dims.tuple
        unknown = [-1, -1, *sizes[2:]][: len(sizes)]
        out.desc = Desc(Dims.of(unknown), static_desc.type, static_desc.format, static_desc.scale)
        out.least, out.usual, out.most = (
            Dims.of([1] * len(sizes)),
            static_desc.dims,
            static_desc.dims,
        )
    return dynamic_descs
