"""Engines of the fake TensorRT: their inputs and outputs, and the function they compute.

An engine sums all inputs per item, and derives every output from the sum and a number that
identifies the plan, like the fake session in `tests.runtime.cuda.fake_session`. The content of an
engine file is its description as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_session import PLAN, SHAPE
from tokenfold.bundle.document import Document
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda.buffers import Array
from tokenfold.runtime.tensorrt.profiles import BATCH_RANGES, OptimizationProfile, SizeRange
from tokenfold.runtime.tensorrt.spec import EngineSpec
from tokenfold.runtime.tensorrt.target import BuildTarget

TARGET = BuildTarget(tensorrt="tensorrt 11.9.0", gpu="Fake GPU sm_90", plugins=None)

SIDES = SizeRange(min=1, opt=4, max=9)
"""Range of image height and width, if they are dynamic."""

TEXT = SizeRange(min=1, opt=4, max=6)
"""Range of the number of text tokens."""

COUNTS = SizeRange(min=0, opt=2, max=10**6)
"""Range of the counts of a plan."""


class TensorDescription(Document):
    """An input or output.

    Attributes:
        shape: dynamic sizes are names; sizes of the same name are equal.
        dtype: such as "uint8".
        host: whether the engine reads the tensor from host memory.
    """

    shape: tuple[int | str, ...]
    dtype: str
    host: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape with -1 for dynamic sizes."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)


class Description(Document):
    """An engine.

    Attributes:
        profiles: minimum and maximum of each size of each input, and of each count of a plan.
        plan: the fixed plan; None if the plan is an input, or there is none.
        memory: working memory per item in bytes; 0, or enough for a sum.
        grows: number of runs that allocate GPU memory.
        host: whether runs call the host.
    """

    inputs: dict[str, TensorDescription]
    outputs: dict[str, TensorDescription]
    profiles: tuple[dict[str, tuple[tuple[int, int], ...]], ...]
    plan: tuple[int, ...] | None = None
    memory: int = 8
    grows: int = 0
    host: bool = False

    @property
    def max_batch(self) -> int:
        """Maximum number of items in a run."""
        return max(profile["batch"][0][1] for profile in self.profiles)

    @property
    def content(self) -> bytes:
        """Content of the engine file, without the header."""
        return self.model_dump_json().encode()


def engine_spec(plan: Plan | None = None) -> EngineSpec:
    """Return the specification of an engine that takes images, and perhaps texts."""
    sizes = {"image": (SIDES, SIDES), "input_ids": (TEXT,)}
    counts = (COUNTS,) * PLAN if plan is None else ()
    return EngineSpec(
        target=TARGET,
        graph="model.onnx",
        sha256="0" * 64,
        precision="fp16",
        plan=plan,
        profiles=tuple(
            OptimizationProfile(batch=batch, sizes=sizes, plan=counts) for batch in BATCH_RANGES
        ),
    )


def describe(
    spec: EngineSpec,
    *,
    plan: bool = True,
    texts: bool = False,
    free: bool = False,
    unused: bool = False,
    memory: int = 8,
    grows: int = 0,
    host: bool = False,
) -> Description:
    """Describe an engine that takes images.

    Args:
        spec: specification that the engine is built from; see `engine_spec`.
        plan, texts, free, grows, host: see `FakeSession`.
        unused: whether no output depends on the plan.
        memory: see `Description`.
    """
    image: tuple[int | str, ...] = ("batch", "rows", "columns", 3) if free else ("batch", *SHAPE)
    inputs = {"image": TensorDescription(shape=image, dtype="uint8")}
    if plan and spec.plan is None:
        inputs["plan"] = TensorDescription(shape=(PLAN,), dtype="int64", host=not unused)
    if texts:
        inputs["input_ids"] = TensorDescription(shape=("batch", "text"), dtype="int64")
    return Description(
        inputs=inputs,
        outputs={
            "logits": TensorDescription(shape=("batch", 2), dtype="float32"),
            "slots": TensorDescription(shape=("batch", 3), dtype="int64"),
        },
        profiles=profile_ranges(spec, inputs),
        plan=spec.plan,
        memory=memory,
        grows=grows,
        host=host,
    )


def describe_graph(path: Path, spec: EngineSpec) -> Description:
    """Describe an engine of a bundle's graph."""
    graph = onnx.load(path, load_external_data=False).graph
    static = spec.plan is not None
    inputs = {
        value.name: _tensor(value) for value in graph.input if not (static and value.name == "plan")
    }
    outputs = {value.name: _tensor(value) for value in graph.output}
    return Description(
        inputs=inputs, outputs=outputs, profiles=profile_ranges(spec, inputs), plan=spec.plan
    )


def profile_ranges(
    spec: EngineSpec, inputs: dict[str, TensorDescription]
) -> tuple[dict[str, tuple[tuple[int, int], ...]], ...]:
    """Return the minimum and maximum of all sizes in each profile, as a builder stores them."""
    return tuple(
        {
            "batch": _limits([profile.batch]),
            **{
                name: _limits(profile.plan if tensor.host else profile.shape(name, tensor.sizes))
                for name, tensor in inputs.items()
            },
        }
        for profile in spec.profiles
    )


def output(
    name: str,
    tensor: TensorDescription,
    sums: npt.NDArray[np.int64],
    plan: Plan,
    shape: Sequence[int],
) -> Array:
    """Compute an output from the sums of the items."""
    number = fake_session.plan_number(plan)
    if name == "logits":
        values = np.full(shape, number)
        values[:, 0] = sums
    else:
        values = np.broadcast_to((sums + number).reshape(-1, *(1 for _ in shape[1:])), shape)
    return values.astype(tensor.dtype)


def _limits(ranges: tuple[SizeRange, ...] | list[SizeRange]) -> tuple[tuple[int, int], ...]:
    return tuple((allowed.min, allowed.max) for allowed in ranges)


def _tensor(value: onnx.ValueInfoProto) -> TensorDescription:
    tensor_type = value.type.tensor_type
    return TensorDescription(
        shape=tuple(size.dim_param or size.dim_value for size in tensor_type.shape.dim),
        dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)).name,
        host=value.name == "plan",
    )
