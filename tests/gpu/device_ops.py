"""The ops on a GPU, for tensors of this machine: what `cuda_host.ops` has, on the device."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.gpu.driver import device
from tests.native.cuda_host import interface, library, nvrtc

# Bytes around an output, and what is written there to see that no kernel writes it.
GUARD = 256
_PATTERN = 0xA5

# Where kernels are, by how their names begin; the longest beginning counts.
_SOURCES = {
    "tokenfold_match": "match.cu",
    "tokenfold_reduce": "reduce.cu",
    "tokenfold_attend": "attend.cu",
    "tokenfold_attend_plain": "attend_plain.cu",
    "tokenfold_importance": "importance.cu",
}


@cache
def function(kernel: str) -> ctypes.c_void_p:
    """A kernel, compiled for this GPU."""
    beginning = max((each for each in _SOURCES if kernel.startswith(each)), key=len)
    return device().function(_module(_SOURCES[beginning]), kernel)


@cache
def _module(source: str) -> ctypes.c_void_p:
    compiled = nvrtc.compiled(library.KERNELS / source, f"sm_{device().architecture()}")
    if not compiled.binary:
        raise RuntimeError(compiled.log)
    return device().load(compiled.binary)


class OnDevice:
    """Memory of the GPU that holds a tensor, until `free`."""

    def __init__(self, like: Tensor, offset: int = 0, guard: int = 0) -> None:
        """Holds a copy of the tensor.

        Args:
            offset: bytes behind a multiple of 256 at which it starts.
            guard: bytes on both sides that nothing may write, a multiple of 256. Without them
                compute-sanitizer sees what is read beyond the tensor.
        """
        self._like = like.contiguous()
        self._start = guard + offset
        self.bytes = self._like.numel() * self._like.itemsize
        room = torch.full((2 * guard + offset + self.bytes,), _PATTERN, dtype=torch.uint8)
        inside = self._like.flatten().view(torch.uint8)
        room[self._start : self._start + self.bytes] = inside
        self._room = len(room)
        self._address = device().allocate(self._room)
        self.pointer = self._address + self._start
        device().upload(self._address, room.data_ptr(), self._room)

    def result(self) -> Tensor:
        """What is there now.

        Raises:
            AssertionError: something was written around it.
        """
        room = torch.empty(self._room, dtype=torch.uint8)
        device().download(room.data_ptr(), self._address, self._room)
        end = self._start + self.bytes
        for outside in (room[: self._start], room[end:]):
            assert (outside == _PATTERN).all(), "written out of bounds"
        inside = room[self._start : end].clone()
        return inside.view(self._like.dtype).reshape(self._like.shape)

    def free(self) -> None:
        device().free(self._address)


class Call:
    """One op with its memory on the GPU."""

    def __init__(
        self, op: str, sizes: dict[str, Any], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
    ) -> None:
        """Takes what a structure of `interface` holds; pointers are filled in.

        Raises:
            RuntimeError: the op refuses its arguments.
        """
        offset = sizes.pop("offset", 0)
        self._moved = {
            name: OnDevice(
                tensor, offset if name in {"x", "y"} else 0, GUARD if name in outputs else 0
            )
            for name, tensor in {**inputs, **outputs}.items()
        }
        self._outputs = list(outputs)
        self.of = interface.OPS[op](**sizes)
        for name, held in self._moved.items():
            setattr(self.of, name, held.pointer)
        if "workspace" in self._moved:
            self.of.workspace_bytes = self._moved["workspace"].bytes
        code, self._alone = library.prepare(op, self.of)
        if code:
            self.free()
            raise RuntimeError(library.text(code))
        self._spread = interface.Launch.from_buffer_copy(self._alone)
        library.spread(self._spread, device().architecture(), device().processors())

    def __call__(self, *, spread: bool = True) -> None:
        """Launch, without waiting.

        Args:
            spread: over clusters of blocks where the GPU has room for them.
        """
        launch = self._spread if spread else self._alone
        if launch.blocks:
            device().launch(function(launch.kernel.decode()), launch)

    def results(self) -> dict[str, Tensor]:
        device().wait()
        return {name: self._moved[name].result() for name in self._outputs}

    def free(self) -> None:
        for held in self._moved.values():
            held.free()


def _run(call: Call) -> dict[str, Tensor]:
    """The outputs, the same in every run and however the work is spread.

    Raises:
        AssertionError: they differ.
    """
    try:
        found = []
        for spread in (True, False):
            call(spread=spread)
            found.append(call.results())
        for name, tensor in found[0].items():
            other = found[1][name]
            assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), "a race"
        return found[0]
    finally:
        call.free()


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """No number in floats, -1 in integers."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((count,), 0xFF, dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def _matcher_outputs(batch: int, tokens: int, head_dim: int) -> dict[str, Tensor]:
    space = _empty((library.workspace_bytes(batch, tokens, head_dim),), torch.uint8)
    return {"slots": _empty((batch, tokens), torch.int64), "workspace": space}


def match_call(
    op: str, keys: Tensor, size: Tensor, r: int, *, heads: int, protected: int, margin: float = 0.0
) -> Call:
    """`match_tome` or `match_pitome`, ready to launch."""
    batch, tokens, channels = keys.shape
    sizes = {
        "type": interface.TYPES[keys.dtype],
        "batch": batch,
        "tokens": tokens,
        "heads": heads,
        "head_dim": channels // heads,
        "protected_tokens": protected,
        "r": r,
        "margin": margin,
    }
    outputs = _matcher_outputs(batch, tokens, channels // heads)
    return Call(op, sizes, {"keys": keys, "size": size}, outputs)


def match(
    op: str, keys: Tensor, size: Tensor, r: int, *, heads: int, protected: int, margin: float = 0.0
) -> Tensor:
    """As `tests.native.cuda_host.ops.match`."""
    call = match_call(op, keys, size, r, heads=heads, protected=protected, margin=margin)
    return _run(call)["slots"]


def unit_metric(keys: Tensor, *, heads: int) -> Tensor:
    """As `tests.native.cuda_host.ops.unit_metric`."""
    ones = torch.ones(keys.shape[:2])
    found = _run(_pumer_call(keys, ones, ones, keys.shape[1], (0, 0, 1), heads))
    return found["workspace"].view(torch.float32).reshape(*ones.shape, -1)


def match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], *, heads: int
) -> Tensor:
    """As `tests.native.cuda_host.ops.match_pumer`."""
    return _run(_pumer_call(keys, size, importance, text, counts, heads))["slots"]


def _pumer_call(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], heads: int
) -> Call:
    batch, tokens, channels = keys.shape
    prune, merge, merge_text = counts
    sizes = {
        "type": interface.TYPES[keys.dtype],
        "batch": batch,
        "tokens": tokens,
        "heads": heads,
        "head_dim": channels // heads,
        "text": text,
        "prune": prune,
        "merge": merge,
        "merge_text": merge_text,
    }
    inputs = {"keys": keys, "size": size, "importance": importance}
    outputs = _matcher_outputs(batch, tokens, channels // heads)
    return Call("match_pumer", sizes, inputs, outputs)


def reduce_call(
    x: Tensor, size: Tensor, slots: Tensor, width: int, trace: Tensor, offset: int = 0
) -> Call:
    """`reduce`, ready to launch."""
    batch, tokens, dim = x.shape
    sizes = {
        "type": interface.TYPES[x.dtype],
        "batch": batch,
        "tokens": tokens,
        "width": width,
        "dim": dim,
        "patches": trace.shape[1],
        "offset": offset,
    }
    outputs = {
        "y": _empty((batch, width, dim), x.dtype),
        "new_size": _empty((batch, width), torch.float32),
        "new_trace": _empty(trace.shape, torch.int64),
    }
    return Call("reduce", sizes, {"x": x, "size": size, "slots": slots, "trace": trace}, outputs)


def reduce(
    x: Tensor, size: Tensor, slots: Tensor, width: int, trace: Tensor | None = None, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tests.native.cuda_host.ops.reduce`."""
    trace = torch.empty(len(x), 0, dtype=torch.int64) if trace is None else trace
    found = _run(reduce_call(x, size, slots, width, trace, offset))
    return found["y"], found["new_size"], found["new_trace"]
