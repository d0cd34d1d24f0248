"""Fake of an ONNX Runtime session on a GPU, whose kernels are work in a fake stream.

The session computes two outputs from the sum of each image's pixels and a number that identifies
the plan: `logits`, (B, 2) float32, holds the two; `slots`, (B, 3) int64, holds their sum. All runs
share the session's only memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.cuda.device import Memory, Stream

SHAPE = (4, 4, 3)
PLAN = 2
MAX_BATCH = 64


def logits(images: Array, plan: Plan) -> npt.NDArray[np.float32]:
    """Return the expected logits of images."""
    sums = images.reshape(len(images), -1).sum(1)
    return np.stack([sums, np.full(len(images), plan_number(plan))], axis=1).astype(np.float32)


def slots(images: Array, plan: Plan) -> npt.NDArray[np.int64]:
    """Return the expected slots of images."""
    return np.repeat(logits(images, plan)[:, :1], 3, axis=1).astype(np.int64) + plan_number(plan)


class Binding:
    """Fake of an IO binding: addresses and shapes of inputs and outputs."""

    def __init__(self) -> None:
        self.shapes: dict[str, Sequence[int]] = {}
        self.addresses: dict[str, int] = {}
        self.plan: Plan = ()

    def bind_input(
        self, name: str, kind: str, number: int, dtype: Any, shape: Sequence[int], address: int
    ) -> None:
        assert (kind, number) == ("cuda", 0)
        assert dtype is {"image": np.uint8, "logits": np.float32, "slots": np.int64}[name]
        self.shapes[name] = shape
        self.addresses[name] = address

    bind_output = bind_input

    def bind_cpu_input(self, name: str, plan: npt.NDArray[np.int64]) -> None:
        assert name == "plan"
        assert plan.dtype == np.int64
        self.plan = tuple(plan.tolist())


class FakeSession:
    """Fake of an ONNX Runtime session.

    Attributes:
        runs: number of runs that were started or recorded.
        grows: number of upcoming runs that allocate GPU memory.
        host: whether runs call the host.
        plan: whether the graph has an input `plan`.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        plan: bool = True,
        texts: bool = False,
        free: bool = False,
        grows: int = 0,
        host: bool = False,
    ) -> None:
        """Create a session.

        Args:
            texts: whether the graph has an input `input_ids`.
            free: whether the image size is dynamic.
        """
        self._stream = stream
        self.plan, self.grows, self.host = plan, grows, host
        self._texts, self._free = texts, free
        self._shared = np.zeros(MAX_BATCH, np.int64)
        self.runs = 0

    def get_inputs(self) -> list[Any]:
        image = ["batch", "rows", "columns", 3] if self._free else ["batch", *SHAPE]
        inputs = [SimpleNamespace(name="image", shape=image)]
        if self.plan:
            inputs.append(SimpleNamespace(name="plan", shape=[PLAN]))
        if self._texts:
            inputs.append(SimpleNamespace(name="input_ids", shape=["batch", "text"]))
        return inputs

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("logits", "slots")]

    def io_binding(self) -> Binding:
        return Binding()

    def run(self, names: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
        self.runs += 1
        images, plan = feeds["image"], tuple(feeds.get("plan", np.zeros(0)).tolist())
        self._stream.wait()
        outputs: dict[str, Array] = {"logits": logits(images, plan), "slots": slots(images, plan)}
        return [outputs[name] for name in names]

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        assert self.plan == bool(binding.plan)
        assert len(binding.plan) in (0, PLAN)
        self.runs += 1
        if self.grows:
            self.grows -= 1
            Memory(1).free()
        stream = self._stream.handle
        views = {name: self._view(binding, name) for name in binding.shapes}
        batch = len(views["image"])

        def sum_pixels() -> None:
            self._shared[:batch] = views["image"].reshape(batch, -1).sum(1)

        def write_outputs() -> None:
            views["logits"][:] = np.stack(
                [self._shared[:batch], np.full(batch, plan_number(binding.plan))], axis=1
            )
            views["slots"][:] = self._shared[:batch, None] + plan_number(binding.plan)

        stream.append(sum_pixels, kind="host" if self.host else "kernel")
        stream.append(write_outputs)

    def _view(self, binding: Binding, name: str) -> Array:
        shape, dtype = (
            binding.shapes[name],
            {"image": np.uint8, "logits": np.float32, "slots": np.int64}[name],
        )
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * size).from_address(binding.addresses[name])
        return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)


def plan_number(plan: Plan) -> int:
    """Return a number that identifies a plan."""
    return sum(count * 10**at for at, count in enumerate(plan))
