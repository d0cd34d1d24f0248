"""Attend and Importance on a GPU, for tensors in host memory, like `cuda_host.attend_ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gpu.device_ops import GUARD, DeviceTensor, function
from tests.gpu.driver import device
from tests.native.cuda_host import interface, library
from tests.native.cuda_host.attend_ops import (
    attend_arguments,
    importance_arguments,
    importance_bytes,
    rows,
    same,
)

_RUNS = 2


class Call:
    """An op with its inputs and outputs on the GPU, ready to launch."""

    def __init__(
        self,
        arguments: interface.Attend | interface.Importance,
        launches: tuple[str, ...],
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        offset: int = 0,
    ) -> None:
        """Copy tensors to the GPU, and set the pointers in the op's arguments.

        Args:
            arguments: the op's arguments.
            launches: names of `interface.LAUNCHES`, in order.
            outputs: initial contents; the last output is the result.
            offset: bytes between a multiple of 256 and the start of each tensor except sizes.

        Raises:
            RuntimeError: the op rejects its arguments.
        """
        self._tensors = {
            name: DeviceTensor(value, 0 if "size" in name else offset, guard)
            for values, guard in ((inputs, 0), (outputs, GUARD))
            for name, value in values.items()
        }
        self._result = list(outputs)[-1]
        for name, tensor in self._tensors.items():
            setattr(arguments, name, tensor.pointer)
        self._launches = []
        for name in launches:
            code, launch = library.prepare(name, arguments)
            if code:
                self.free()
                raise RuntimeError(library.text(code))
            if launch.blocks:
                self._launches.append((function(launch.kernel.decode()), launch))

    def __call__(self) -> None:
        """Launch, without waiting."""
        for kernel, launch in self._launches:
            device().launch(kernel, launch)

    def result(self) -> Tensor:
        device().wait()
        for tensor in self._tensors.values():
            tensor.result()
        return self._tensors[self._result].result()

    def free(self) -> None:
        for tensor in self._tensors.values():
            tensor.free()


def run(call: Call) -> Tensor:
    """Run an op several times, free its memory, and return the result.

    Raises:
        AssertionError: the results differ.
    """
    try:
        results = []
        for _ in range(_RUNS):
            call()
            results.append(call.result())
        return same(results)
    finally:
        call.free()


def _nan(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def attend_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor,
    *,
    heads: int,
    gaps: tuple[int, int, int] = (0, 0, 0),
    offset: int = 0,
) -> Call:
    """Prepare a call of `attend`."""
    (q_rows, q_stride), (k_rows, k_stride), (v_rows, v_stride) = map(rows, (q, k, v), gaps)
    arguments = attend_arguments(q, k, (q_stride, k_stride, v_stride), heads)
    inputs = {"q": q_rows, "k": k_rows, "v": v_rows, "size": size}
    return Call(arguments, ("attend",), inputs, {"out": _nan(q.shape, q.dtype)}, offset)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor,
    *,
    heads: int,
    gaps: tuple[int, int, int] = (0, 0, 0),
    offset: int = 0,
) -> Tensor:
    """Run `attend`; see `tests.native.cuda_host.attend_ops.attend`."""
    return run(attend_call(q, k, v, size, heads=heads, gaps=gaps, offset=offset))


def importance_call(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    queries: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Call:
    """Prepare a call of `importance`."""
    (q_rows, q_stride), (k_rows, k_stride) = map(rows, (q, k), gaps)
    arguments = importance_arguments(q, k, (q_stride, k_stride), queries, heads)
    arguments.workspace_bytes = importance_bytes(len(q), k.shape[1], heads)
    inputs = {"q": q_rows, "k": k_rows, "size": size, "query_size": query_size}
    space = _nan((arguments.workspace_bytes // 4,), torch.float32)
    outputs = {"workspace": space, "importance": _nan(size.shape, torch.float32)}
    return Call(arguments, ("importance_heads", "importance_mean"), inputs, outputs)


def importance(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    queries: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Tensor:
    """Run `importance`; see `tests.native.cuda_host.attend_ops.importance`."""
    return run(importance_call(q, k, size, query_size, queries, heads=heads, gaps=gaps))
