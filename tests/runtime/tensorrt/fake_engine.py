"""What an engine is to the TensorRT that stands in: what it takes and gives, and a sum.

Every item's sum over all inputs, and a number that stands for the plan, make all outputs: as
`cuda.fake_session` has it of images. What would be an engine's bytes is its description.
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
from tokenfold.runtime.cuda.lanes import Array
from tokenfold.runtime.tensorrt.origin import Origin, Target
from tokenfold.runtime.tensorrt.profiles import BATCHES, Profile, Range

TARGET = Target(tensorrt="tensorrt 11.9.0", gpu="Fake GPU sm_90", plugins=None)

SIDES = Range(least=1, usual=4, most=9)
"""Of images that vary."""

TEXT = Range(least=1, usual=4, most=6)

COUNTS = Range(least=0, usual=2, most=10**6)
"""Of a plan."""


class Shaped(Document):
    """An input or an output.

    Attributes:
        shape: with a name for what varies. Sizes of one name are the same.
        dtype: such as "uint8".
        host: whether it is read from the host.
    """

    shape: tuple[int | str, ...]
    dtype: str
    host: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """-1 for what varies."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)


class Description(Document):
    """An engine.

    Attributes:
        profiles: least and most of each size of each input, and of each count of a plan.
        plan: the one that it was built for, where that is no input.
        memory: bytes that a context works in for each item; 0 or enough for a sum.
        grows: how many runs take memory from CUDA.
        host: whether a run copies something from the host.
    """

    inputs: dict[str, Shaped]
    outputs: dict[str, Shaped]
    profiles: tuple[dict[str, tuple[tuple[int, int], ...]], ...]
    plan: tuple[int, ...] | None = None
    memory: int = 8
    grows: int = 0
    host: bool = False

    @property
    def most(self) -> int:
        """Items of a run."""
        return max(one["batch"][0][1] for one in self.profiles)

    @property
    def content(self) -> bytes:
        """What TensorRT is given to load."""
        return self.model_dump_json().encode()


def origin(plan: Plan | None = None) -> Origin:
    """What an engine of images, and perhaps more, was built from."""
    sizes = {"image": (SIDES, SIDES), "input_ids": (TEXT,)}
    counts = (COUNTS,) * PLAN if plan is None else ()
    return Origin(
        target=TARGET,
        graph="model.onnx",
        sha256="0" * 64,
        precision="fp16",
        plan=plan,
        profiles=tuple(Profile(batch=batch, sizes=sizes, plan=counts) for batch in BATCHES),
    )


def described(
    own: Origin,
    *,
    plan: bool = True,
    texts: bool = False,
    free: bool = False,
    unused: bool = False,
    memory: int = 8,
    grows: int = 0,
    host: bool = False,
) -> Description:
    """An engine of images.

    Args:
        own: what it is built from; see `origin`.
        plan, texts, free, grows, host: see `FakeSession`.
        unused: whether nothing depends on the plan.
        memory: see `Description`.
    """
    image: tuple[int | str, ...] = ("batch", "rows", "columns", 3) if free else ("batch", *SHAPE)
    inputs = {"image": Shaped(shape=image, dtype="uint8")}
    if plan and own.plan is None:
        inputs["plan"] = Shaped(shape=(PLAN,), dtype="int64", host=not unused)
    if texts:
        inputs["input_ids"] = Shaped(shape=("batch", "text"), dtype="int64")
    return Description(
        inputs=inputs,
        outputs={
            "logits": Shaped(shape=("batch", 2), dtype="float32"),
            "slots": Shaped(shape=("batch", 3), dtype="int64"),
        },
        profiles=ranges(own, inputs),
        plan=own.plan,
        memory=memory,
        grows=grows,
        host=host,
    )


def of_graph(path: Path, own: Origin) -> Description:
    """An engine of a bundle's graph."""
    graph = onnx.load(path, load_external_data=False).graph
    fixed = own.plan is not None
    inputs = {one.name: _shaped(one) for one in graph.input if not (fixed and one.name == "plan")}
    outputs = {one.name: _shaped(one) for one in graph.output}
    return Description(inputs=inputs, outputs=outputs, profiles=ranges(own, inputs), plan=own.plan)


def ranges(
    own: Origin, inputs: dict[str, Shaped]
) -> tuple[dict[str, tuple[tuple[int, int], ...]], ...]:
    """What a builder makes of profiles."""
    return tuple(
        {
            "batch": _ends([profile.batch]),
            **{
                name: _ends(profile.plan if one.host else profile.shape(name, one.sizes))
                for name, one in inputs.items()
            },
        }
        for profile in own.profiles
    )


def output(
    name: str, one: Shaped, sums: npt.NDArray[np.int64], plan: Plan, shape: Sequence[int]
) -> Array:
    """What becomes of the items' sums."""
    number = fake_session.number(plan)
    if name == "logits":
        found = np.full(shape, number)
        found[:, 0] = sums
    else:
        found = np.broadcast_to((sums + number).reshape(-1, *(1 for _ in shape[1:])), shape)
    return found.astype(one.dtype)


def _ends(wanted: tuple[Range, ...] | list[Range]) -> tuple[tuple[int, int], ...]:
    return tuple((one.least, one.most) for one in wanted)


def _shaped(value: onnx.ValueInfoProto) -> Shaped:
    kind = value.type.tensor_type
    return Shaped(
        shape=tuple(size.dim_param or size.dim_value for size in kind.shape.dim),
        dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name,
        host=value.name == "plan",
    )
