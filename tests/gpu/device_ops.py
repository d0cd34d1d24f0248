"""The ops on a GPU, for tensors in host memory, like `cuda_host.ops`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.gpu.driver import device
from tests.native.cuda_host import interface, library, nvrtc

# Bytes on both sides of an output, and the pattern in them, which no kernel may overwrite.
GUARD = 256
_PATTERN = 0xA5

# Source file of each kernel by prefix of its name; the longest matching prefix counts.
_SOURCES = {
    "tokenfold_match": "match.cu",
    "tokenfold_reduce": "reduce.cu",
    "tokenfold_attend": "attend.cu",
    "tokenfold_attend_plain": "attend_plain.cu",
    "tokenfold_importance": "importance.cu",
}


@cache
def function(kernel: str) -> ctypes.c_void_p:
    """Return a kernel, compiled for this GPU."""
    prefix = max((prefix for prefix in _SOURCES if kernel.startswith(prefix)), key=len)
    return device().function(_module(_SOURCES[prefix]), kernel)


@cache
def _module(source: str) -> ctypes.c_void_p:
    result = nvrtc.compile_file(library.KERNELS / source, f"sm_{device().architecture()}")
    if not result.binary:
        raise RuntimeError(result.log)
    return device().load(result.binary)


class DeviceTensor:
    """A copy of a tensor in GPU memory."""

    def __init__(self, like: Tensor, offset: int = 0, guard: int = 0) -> None:
        """Copy a tensor to the GPU.

        Args:
            offset: bytes between a multiple of 256 and the start of the copy.
            guard: bytes on both sides that nothing may write, a multiple of 256. With a guard of
                0, compute-sanitizer detects reads beyond the tensor.
        """
        self._like = like.contiguous()
        self._start = guard + offset
        self.bytes = self._like.numel() * self._like.itemsize
        block = torch.full((2 * guard + offset + self.bytes,), _PATTERN, dtype=torch.uint8)
        content = self._like.flatten().view(torch.uint8)
        block[self._start : self._start + self.bytes] = content
        self._block = len(block)
        self._address = device().allocate(self._block)
        self.pointer = self._address + self._start
        device().upload(self._address, block.data_ptr(), self._block)

    def result(self) -> Tensor:
        """Return the present content.

        Raises:
            AssertionError: a guard was overwritten.
        """
        block = torch.empty(self._block, dtype=torch.uint8)
        device().download(block.data_ptr(), self._address, self._block)
        end = self._start + self.bytes
        for guard in (block[: self._start], block[end:]):
            assert (guard == _PATTERN).all(), "written out of bounds"
        content = block[self._start : end].clone()
        return content.view(self._like.dtype).reshape(self._like.shape)

    def free(self) -> None:
        device().free(self._address)


class Call:
    """An op with its inputs and outputs on the GPU, ready to launch."""

    def __init__(
        self, op: str, sizes: dict[str, Any], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
    ) -> None:
        """Copy tensors to the GPU, and fill in the op's arguments.

        Args:
            sizes: fields of the op's structure in `interface`, without pointers.

        Raises:
            RuntimeError: the op rejects its arguments.
        """
        offset = sizes.pop("offset", 0)
        self._tensors = {
            name: DeviceTensor(
                tensor, offset if name in {"x", "y"} else 0, GUARD if name in outputs else 0
            )
            for name, tensor in {**inputs, **outputs}.items()
        }
        self._outputs = list(outputs)
        self.arguments = interface.OPS[op](**sizes)
        for name, device_tensor in self._tensors.items():
            setattr(self.arguments, name, device_tensor.pointer)
        if "workspace" in self._tensors:
            self.arguments.workspace_bytes = self._tensors["workspace"].bytes
        code, self._single_block = library.prepare(op, self.arguments)
        if code:
            self.free()
            raise RuntimeError(library.text(code))
        self._spread = interface.Launch.from_buffer_copy(self._single_block)
        library.spread(self._spread, device().architecture(), device().processors())

    def __call__(self, *, spread: bool = True) -> None:
        """Launch, without waiting.

        Args:
            spread: whether clusters of blocks share an image, if the GPU has free processors.
        """
        launch = self._spread if spread else self._single_block
        if launch.blocks:
            device().launch(function(launch.kernel.decode()), launch)

    def results(self) -> dict[str, Tensor]:
        device().wait()
        return {name: self._tensors[name].result() for name in self._outputs}

    def free(self) -> None:
        for tensor in self._tensors.values():
            tensor.free()


def _run(call: Call) -> dict[str, Tensor]:
    """Run an op with and without clusters, and return its outputs.

    Raises:
        AssertionError: the outputs of the two runs differ.
    """
    try:
        results = []
        for spread in (True, False):
            call(spread=spread)
            results.append(call.results())
        for name, tensor in results[0].items():
            other = results[1][name]
            assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), (
                "a race: results differ between runs"
            )
        return results[0]
    finally:
        call.free()


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of all ones bits: NaN in floats, -1 in integers."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((count,), 0xFF, dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def _matcher_outputs(batch: int, tokens: int, head_dim: int) -> dict[str, Tensor]:
    space = _empty((library.workspace_bytes(batch, tokens, head_dim),), torch.uint8)
    return {"slots": _empty((batch, tokens), torch.int64), "workspace": space}


def match_call(
    op: str, keys: Tensor, size: Tensor, r: int, *, heads: int, protected: int, margin: float = 0.0
) -> Call:
    """Prepare a call of `match_tome` or `match_pitome`."""
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
    """Run a matcher; see `tests.native.cuda_host.ops.match`."""
    call = match_call(op, keys, size, r, heads=heads, protected=protected, margin=margin)
    return _run(call)["slots"]


def unit_metric(keys: Tensor, *, heads: int) -> Tensor:
    """Compute the unit metric; see `tests.native.cuda_host.ops.unit_metric`."""
    ones = torch.ones(keys.shape[:2])
    outputs = _run(_pumer_call(keys, ones, ones, keys.shape[1], (0, 0, 1), heads))
    return outputs["workspace"].view(torch.float32).reshape(*ones.shape, -1)


def match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], *, heads: int
) -> Tensor:
    """Run PuMer's matcher; see `tests.native.cuda_host.ops.match_pumer`."""
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
    """Prepare a call of `reduce`."""
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
    """Run the reducer; see `tests.native.cuda_host.ops.reduce`."""
    trace = torch.empty(len(x), 0, dtype=torch.int64) if trace is None else trace
    outputs = _run(reduce_call(x, size, slots, width, trace, offset))
    return outputs["y"], outputs["new_size"], outputs["new_trace"]
