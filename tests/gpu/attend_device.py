"""Attend and Importance on a GPU, for tensors of this machine: as `cuda_host.attend_ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gpu.device_ops import GUARD, OnDevice, function
from tests.gpu.driver import device
from tests.native.cuda_host import interface, library
from tests.native.cuda_host.attend_ops import attend_of, importance_bytes, importance_of, rows, same

_RUNS = 2


class Call:
    """One op with its memory on the GPU."""

    def __init__(
        self,
        of: interface.Attend | interface.Importance,
        launches: tuple[str, ...],
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        offset: int = 0,
    ) -> None:
        """Fills the structure's pointers in.

        Args:
            launches: names of `interface.LAUNCHES`, in order.
            outputs: what they are before; the last is the result.
            offset: bytes behind a multiple of 256 at which all but sizes start.

        Raises:
            RuntimeError: the op refuses its arguments.
        """
        self._moved = {
            name: OnDevice(tensor, 0 if "size" in name else offset, guard)
            for part, guard in ((inputs, 0), (outputs, GUARD))
            for name, tensor in part.items()
        }
        self._result = list(outputs)[-1]
        for name, held in self._moved.items():
            setattr(of, name, held.pointer)
        self._launches = []
        for name in launches:
            code, launch = library.prepare(name, of)
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
        for held in self._moved.values():
            held.result()
        return self._moved[self._result].result()

    def free(self) -> None:
        for held in self._moved.values():
            held.free()


def run(call: Call) -> Tensor:
    """The result, the same in every run; frees the memory.

    Raises:
        AssertionError: it differs.
    """
    try:
        found = []
        for _ in range(_RUNS):
            call()
            found.append(call.result())
        return same(found)
    finally:
        call.free()


def _no_number(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
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
    """`attend`, ready to launch."""
    (own_q, q_stride), (own_k, k_stride), (own_v, v_stride) = map(rows, (q, k, v), gaps)
    of = attend_of(q, k, (q_stride, k_stride, v_stride), heads)
    inputs = {"q": own_q, "k": own_k, "v": own_v, "size": size}
    return Call(of, ("attend",), inputs, {"out": _no_number(q.shape, q.dtype)}, offset)


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
    """As `tests.native.cuda_host.attend_ops.attend`."""
    return run(attend_call(q, k, v, size, heads=heads, gaps=gaps, offset=offset))


def importance_call(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    asked: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Call:
    """`importance`, ready to launch."""
    (own_q, q_stride), (own_k, k_stride) = map(rows, (q, k), gaps)
    of = importance_of(q, k, (q_stride, k_stride), asked, heads)
    of.workspace_bytes = importance_bytes(len(q), k.shape[1], heads)
    inputs = {"q": own_q, "k": own_k, "size": size, "query_size": query_size}
    space = _no_number((of.workspace_bytes // 4,), torch.float32)
    outputs = {"workspace": space, "importance": _no_number(size.shape, torch.float32)}
    return Call(of, ("importance_heads", "importance_mean"), inputs, outputs)


def importance(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    asked: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Tensor:
    """As `tests.native.cuda_host.attend_ops.importance`."""
    return run(importance_call(q, k, size, query_size, asked, heads=heads, gaps=gaps))
