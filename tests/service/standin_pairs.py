"""Stand-in bundle for images with texts, without torch.

The network compares the colours of an image with the colours that a text names.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION, Level, Manifest, TextSpec
from tokenfold.bundle.pair_workload import ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import PROFILE, LevelProfile, Profile, Quality
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.bundle.writing import stored_files, write_manifest, writing

SIDE, PATCH = 16, 4
MOST_TOKENS = 12
COLOURS = ("red", "green", "blue")
WORDS = (*COLOURS, "not", "is", "it", "the", "what", "colour", "left")
TASKS: dict[PairTask, tuple[str, ...]] = {
    "vqa": COLOURS,
    "entail": ("entailment", "neutral", "contradiction"),
    "reason": ("false", "true"),
    "match": (),
}
WORKLOAD = ViltWorkload(
    method="pumer",
    text=MOST_TOKENS,
    image=1 + (SIDE // PATCH) ** 2,
    most_text=MOST_TOKENS,
    layers=(0, 1),
    depth=2,
    dim=32,
    mlp_dim=64,
    metric_dim=16,
    stem=1536,
    head=96,
)
REDUCTIONS = {"exact": 0.0, "balanced": 0.3, "fast": 0.5}
ACCURACY: dict[PairTask, dict[str, float]] = {
    "vqa": {"exact": 0.9, "balanced": 0.88, "fast": 0.75},
    "entail": {"exact": 0.8, "balanced": 0.8, "fast": 0.79},
    "reason": {"exact": 0.7, "balanced": 0.6, "fast": 0.5},
}
STRETCHED = Preprocess(size=(SIDE, SIDE))
BOUNDED = Preprocess(
    size=(SIDE, SIDE), resize="bounded", shorter_side=SIDE, longest=2 * SIDE, multiple=PATCH
)


def pair_bundle(
    out: Path,
    *,
    name: str = "pairs",
    tasks: Sequence[PairTask] = tuple(TASKS),
    preprocess: Preprocess = STRETCHED,
) -> Path:
    """Write the bundle."""
    plans = {level: plan_for(WORKLOAD, share) for level, share in REDUCTIONS.items()}
    with writing(out) as folder:
        onnx.save(_vision(), folder / VISION)
        onnx.save(_joint(tasks), folder / JOINT)
        word_level(WORDS, MOST_TOKENS).save(folder / TOKENIZER)
        (folder / PROFILE).write_text(_profile(tasks).model_dump_json())
        write_manifest(
            folder,
            Manifest(
                name=name,
                tasks={task: TASKS[task] for task in tasks},
                source="tests",
                precision="fp32",
                workload=WORKLOAD,
                text=TextSpec(most_tokens=MOST_TOKENS),
                preprocess=preprocess,
                levels={
                    level: Level(
                        reduction=REDUCTIONS[level],
                        plan=plan,
                        flops_ratio=flops_ratio(WORKLOAD, plan),
                        tokens_out=WORKLOAD.widths(plan)[-1],
                    )
                    for level, plan in plans.items()
                },
                default_level="exact",
                versions={"onnx": onnx.__version__},
                files=stored_files(folder),
            ),
        )
    return out


def _profile(tasks: Sequence[PairTask]) -> Profile:
    return Profile(
        measured=date(2026, 1, 1),
        machine="none",
        runtime="none",
        levels={
            level: LevelProfile(
                quality={
                    task: Quality(
                        metric="accuracy", value=accuracy[level], low=0.0, high=1.0, samples=100
                    )
                    for task, accuracy in ACCURACY.items()
                    if task in tasks
                }
            )
            for level in REDUCTIONS
        },
    )


def _constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _vision() -> onnx.ModelProto:
    """Return a graph of the mean colour of an image and of each of its patches, 0 to 10.2."""
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("Div", ["pixels", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        node(
            "AveragePool",
            ["planes"],
            ["pooled"],
            kernel_shape=[PATCH, PATCH],
            strides=[PATCH, PATCH],
        ),
        node("Reshape", ["pooled", "flat"], ["columns"]),
        node("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
        node("ReduceMean", ["patches", "along"], ["mean"], keepdims=1),
        node("Concat", ["mean", "patches"], ["image_tokens"], axis=1),
    ]
    return _model(
        helper.make_graph(
            nodes,
            "vision",
            [
                helper.make_tensor_value_info(
                    "image", TensorProto.UINT8, ["batch", "height", "width", 3]
                )
            ],
            [
                helper.make_tensor_value_info(
                    "image_tokens", TensorProto.FLOAT, ["batch", "image", 3]
                )
            ],
            [
                _constant("scale", 25.0, np.float32),
                _constant("flat", [0, 3, -1], np.int64),
                _constant("along", [1], np.int64),
            ],
        )
    )


def _joint(tasks: Sequence[PairTask]) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Slice", ["image_tokens", "at_0", "at_1", "axis_1"], ["first"]),
        node("Squeeze", ["first", "axis_1"], ["pooled"]),
        # Number of times that the text names each colour, (B, 3), without padding.
        node("Unsqueeze", ["input_ids", "axis_2"], ["ids"]),
        node("Unsqueeze", ["text_size", "axis_2"], ["size"]),
        node("Equal", ["ids", "colours"], ["named"]),
        node("Cast", ["named"], ["named_1"], to=TensorProto.FLOAT),
        node("Mul", ["named_1", "size"], ["named_2"]),
        node("ReduceSum", ["named_2", "axis_1"], ["names"], keepdims=0),
        # vqa: the strongest colour, or the weakest one if the text has the word "not".
        node("Equal", ["input_ids", "not"], ["nots"]),
        node("Cast", ["nots"], ["nots_1"], to=TensorProto.FLOAT),
        node("ReduceMax", ["nots_1", "axis_1"], ["is_not"], keepdims=1),
        node("Mul", ["is_not", "two"], ["is_not_2"]),
        node("Sub", ["one", "is_not_2"], ["sign"]),
        node("Mul", ["pooled", "sign"], ["vqa"]),
        # match: the amount of the named colours in the image; entail: the same as three classes.
        node("Sub", ["pooled", "half"], ["centred"]),
        node("Mul", ["names", "centred"], ["agreeing"]),
        node("ReduceSum", ["agreeing", "axis_1"], ["match"], keepdims=1),
        node("Mul", ["match", "classes"], ["entail"]),
        # reason: true if the left image has more of the named colours than the right one.
        node("Sub", ["other", "pooled"], ["more"]),
        node("Mul", ["names", "more"], ["more_named"]),
        node("ReduceSum", ["more_named", "axis_1"], ["difference"], keepdims=1),
        node("Cast", ["second"], ["second_1"], to=TensorProto.FLOAT),
        node("Mul", ["difference", "second_1"], ["difference_1"]),
        node("Mul", ["difference_1", "sides"], ["reason"]),
        *_slots(),
    ]
    classes = {task: len(TASKS[task]) or 1 for task in tasks}
    inputs: dict[str, tuple[int, list[str | int]]] = {
        "image_tokens": (TensorProto.FLOAT, ["batch", "image", 3]),
        "input_ids": (TensorProto.INT64, ["batch", "text"]),
        "text_size": (TensorProto.FLOAT, ["batch", "text"]),
        "plan": (TensorProto.INT64, [WORKLOAD.plan_length]),
        "second": (TensorProto.INT64, [1]),
        "other": (TensorProto.FLOAT, ["batch", 3]),
    }
    outputs: dict[str, tuple[int, list[str | int]]] = {
        **{task: (TensorProto.FLOAT, ["batch", n]) for task, n in classes.items()},
        "pooled": (TensorProto.FLOAT, ["batch", 3]),
        "text_slots": (TensorProto.INT64, ["batch", "text"]),
        "image_slots": (TensorProto.INT64, ["batch", "image"]),
    }
    return _model(
        helper.make_graph(
            nodes,
            "joint",
            [
                helper.make_tensor_value_info(name, *type_and_shape)
                for name, type_and_shape in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, *type_and_shape)
                for name, type_and_shape in outputs.items()
            ],
            [
                _constant("at_0", [0], np.int64),
                _constant("at_1", [1], np.int64),
                _constant("axis_0", [0], np.int64),
                _constant("axis_1", [1], np.int64),
                _constant("axis_2", [2], np.int64),
                # Ids 0 to 3 are special tokens.
                _constant("colours", [[[4, 5, 6]]], np.int64),
                _constant("not", 4 + WORDS.index("not"), np.int64),
                _constant("one", 1.0, np.float32),
                _constant("two", 2.0, np.float32),
                _constant("half", 5.0, np.float32),
                _constant("classes", [[1.0, 0.0, -1.0]], np.float32),
                _constant("sides", [[-1.0, 1.0]], np.float32),
                _constant("layers", [-1, 3], np.int64),
                _constant("zero", 0, np.int64),
                _constant("unit", 1, np.int64),
                _constant("dropped", -1, np.int64),
            ],
        )
    )


def _slots() -> list[onnx.NodeProto]:
    """Return nodes of the slots: removed tokens merge into the first one or are dropped."""
    node = helper.make_node
    return [
        node("Reshape", ["plan", "layers"], ["counts"]),
        node("ReduceSum", ["counts", "axis_0"], ["removed"], keepdims=0),
        node("Split", ["removed"], ["prune", "merge", "words"], num_outputs=3),
        node("Shape", ["input_ids"], ["text"], start=1, end=2),
        node("Shape", ["image_tokens"], ["image"], start=1, end=2),
        node("Shape", ["input_ids"], ["text_shape"]),
        node("Shape", ["image_tokens"], ["image_shape"], start=0, end=2),
        node("Sub", ["text", "words"], ["text_left"]),
        node("Sub", ["image", "prune"], ["image_kept"]),
        node("Sub", ["image_kept", "merge"], ["image_left"]),
        node("Squeeze", ["text"], ["text_0"]),
        node("Squeeze", ["image"], ["image_0"]),
        node("Range", ["zero", "text_0", "unit"], ["text_at"]),
        node("Range", ["zero", "image_0", "unit"], ["image_at"]),
        node("Less", ["text_at", "text_left"], ["text_stays"]),
        node("Where", ["text_stays", "text_at", "zero"], ["text_row"]),
        node("Expand", ["text_row", "text_shape"], ["text_slots"]),
        node("Add", ["image_at", "text_left"], ["image_to"]),
        node("Less", ["image_at", "image_left"], ["image_stays"]),
        node("Less", ["image_at", "image_kept"], ["image_merges"]),
        node("Where", ["image_merges", "text_left", "dropped"], ["image_rest"]),
        node("Where", ["image_stays", "image_to", "image_rest"], ["image_row"]),
        node("Expand", ["image_row", "image_shape"], ["image_slots"]),
    ]
