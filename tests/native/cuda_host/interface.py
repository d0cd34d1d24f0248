"""The structures of `native/kernels/tokenfold_cuda.h` for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar

import torch

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

OK = 0
BAD_TYPE, BAD_SHAPE, BAD_PROTECTED, TOO_MANY_TOKENS = 1, 2, 3, 4
BATCH_TOO_LARGE, NO_POINTER, BAD_WORKSPACE, MISALIGNED = 5, 6, 7, 8
HEAD_TOO_WIDE = 9

MOST_TOKENS = 1024
MOST_REDUCE_TOKENS = 32768

Fields = list[tuple[str, Any]]
_SHAPE: Fields = [
    ("type", c_int32),
    *((name, c_int64) for name in ("batch", "tokens", "heads", "head_dim", "stride")),
]
_SPACE: Fields = [
    ("slots", c_void_p),
    ("workspace", c_void_p),
    ("workspace_bytes", c_size_t),
]


class Match(ctypes.Structure):
    """TokenfoldMatch."""

    _fields_: ClassVar[Fields] = [
        *_SHAPE,
        ("protected_tokens", c_int64),
        ("r", c_int64),
        ("margin", c_float),
        ("keys", c_void_p),
        ("size", c_void_p),
        *_SPACE,
    ]


class MatchPuMer(ctypes.Structure):
    """TokenfoldMatchPuMer."""

    _fields_: ClassVar[Fields] = [
        *_SHAPE,
        *((name, c_int64) for name in ("text", "prune", "merge", "merge_text")),
        *((name, c_void_p) for name in ("keys", "size", "importance")),
        *_SPACE,
    ]


class Reduce(ctypes.Structure):
    """TokenfoldReduce."""

    _fields_: ClassVar[Fields] = [
        ("type", c_int32),
        *((name, c_int64) for name in ("batch", "tokens", "width", "dim", "patches")),
        *((name, c_void_p) for name in ("x", "size", "slots", "trace")),
        *((name, c_void_p) for name in ("y", "new_size", "new_trace")),
    ]


class Attend(ctypes.Structure):
    """TokenfoldAttend."""

    _fields_: ClassVar[Fields] = [
        ("type", c_int32),
        *((name, c_int64) for name in ("batch", "queries", "tokens", "heads", "head_dim")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride")),
        ("scale", c_float),
        *((name, c_void_p) for name in ("q", "k", "v", "size", "out")),
    ]


class Importance(ctypes.Structure):
    """TokenfoldImportance."""

    _fields_: ClassVar[Fields] = [
        ("type", c_int32),
        *((name, c_int64) for name in ("batch", "queries", "tokens", "heads", "head_dim")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "asked")),
        ("scale", c_float),
        *((name, c_void_p) for name in ("q", "k", "size", "query_size", "importance")),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    ]


class Launch(ctypes.Structure):
    """TokenfoldLaunch."""

    _fields_: ClassVar[Fields] = [
        ("kernel", c_char * 40),
        *((name, c_uint32) for name in ("blocks", "threads", "shared_bytes", "argument_bytes")),
        *((name, c_uint32) for name in ("cluster", "most_cluster")),
        ("arguments", c_uint64 * 16),
    ]


# Arguments of `tokenfold_cuda_OP`, by op.
OPS: dict[str, type[ctypes.Structure]] = {
    "match_tome": Match,
    "match_pitome": Match,
    "match_pumer": MatchPuMer,
    "reduce": Reduce,
    "attend": Attend,
    "importance": Importance,
}
# Arguments of `tokenfold_cuda_prepare_LAUNCH`, by launch.
LAUNCHES: dict[str, type[ctypes.Structure]] = {
    **{op: structure for op, structure in OPS.items() if op != "importance"},
    "importance_heads": Importance,
    "importance_mean": Importance,
}
