"""Stand-in bundle of a dual encoder, without torch.

An embedding holds the amounts of red, green and blue that an image shows or a text names. Image
embeddings also hold the brightness of each patch, which distinguishes images of one colour.
Reduction changes an embedding slightly.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.service.standin import bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.bundle.manifest import (
    IMAGE,
    TEXT,
    TOKENIZER,
    Level,
    Manifest,
    Scoring,
    Similarity,
    TextSpec,
)
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import PROFILE, LevelProfile, Profile, Quality
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.text import word_level
from tokenfold.bundle.workload import DualWorkload, TextWorkload
from tokenfold.bundle.writing import stored_files, write_manifest, writing

SIDE, PATCH = 16, 4
MOST_TOKENS = 12
WORDS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    **dict.fromkeys(("a", "photo", "of", "the", "drawing", "circle", "."), (0.0, 0.0, 0.0)),
}
WIDTH = 3 + (SIDE // PATCH) ** 2 + 1
WORKLOAD = DualWorkload(
    method="tome",
    tokens=17,
    protected=1,
    depth=4,
    dim=32,
    mlp_dim=64,
    metric_dim=16,
    stem=0,
    head=0,
    text=TextWorkload(depth=2, dim=32, mlp_dim=64, head=32 * WIDTH),
)
REDUCTIONS = {"exact": 0.0, "balanced": 0.3, "fast": 0.6}
RECALL = {"exact": 0.9, "balanced": 0.88, "fast": 0.75}
NEIGHBOURS = {"exact": 1.0, "balanced": 0.9, "fast": 0.7}

# Weight of the brightness of a patch, and a constant component that keeps embeddings nonzero.
_PATCHES, _ALWAYS = 0.2, 0.1


def dual_bundle(
    out: Path,
    *,
    name: str = "dual",
    scores: Scoring = "softmax",
    padded: bool = False,
    red: float = 1.0,
    width: int = WIDTH,
) -> Path:
    """Write the bundle.

    Args:
        padded: pad texts to full length, as SigLIP does.
        red: weight of the first colour; another weight makes another model.
        width: width of the embeddings according to the manifest.
    """
    plans = {level: plan_for(WORKLOAD, share) for level, share in REDUCTIONS.items()}
    with writing(out) as folder:
        onnx.save(_image(red), folder / IMAGE)
        onnx.save(_text(), folder / TEXT)
        word_level(tuple(WORDS), MOST_TOKENS).save(folder / TOKENIZER)
        (folder / PROFILE).write_text(_profile().model_dump_json())
        write_manifest(
            folder,
            Manifest(
                name=name,
                tasks={"embed": ()},
                source="tests",
                precision="fp32",
                workload=WORKLOAD,
                text=TextSpec(most_tokens=MOST_TOKENS, padding=0 if padded else None),
                similarity=Similarity(
                    width=width,
                    scale=20.0,
                    bias=-10.0 if scores == "sigmoid" else 0.0,
                    scores=scores,
                    template="a photo of {}.",
                ),
                preprocess=Preprocess(size=(SIDE, SIDE)),
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


def every_kind(root: Path) -> Path:
    """Write bundles of a classifier, a CLIP-like and a SigLIP-like encoder, and a pair network."""
    bundle(root / "a")
    dual_bundle(root / "b")
    dual_bundle(root / "c", name="padded", scores="sigmoid", padded=True)
    pair_bundle(root / "d")
    return root


def _profile() -> Profile:
    return Profile(
        measured=date(2026, 1, 1),
        machine="none",
        runtime="none",
        texts_per_second=1000.0,
        levels={
            level: LevelProfile(
                quality={
                    "embed": Quality(metric="recall", value=recall, low=0.0, high=1.0, samples=100)
                },
                neighbours=NEIGHBOURS,
            )
            for level, recall in RECALL.items()
        },
    )


def _constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _image(red: float) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("Div", ["pixels", "scale"], ["scaled"]),
        node("ReduceMean", ["scaled", "sides"], ["means"], keepdims=0),
        node("Mul", ["means", "strengths"], ["colours"]),
        node("ReduceMean", ["scaled", "channels"], ["bright"], keepdims=0),
        node("Unsqueeze", ["bright", "axis_1"], ["plane"]),
        node(
            "AveragePool", ["plane"], ["pooled"], kernel_shape=[PATCH, PATCH], strides=[PATCH] * 2
        ),
        node("Flatten", ["pooled"], ["patches"]),
        node("Mul", ["patches", "little"], ["places"]),
        node("Shape", ["image"], ["batch"], start=0, end=1),
        # The number of removed tokens changes the constant component.
        node("ReduceSum", ["plan"], ["removed"], keepdims=0),
        node("Cast", ["removed"], ["removed_1"], to=TensorProto.FLOAT),
        node("Mul", ["removed_1", "each"], ["moved"]),
        node("Add", ["moved", "always"], ["more"]),
        node("Concat", ["batch", "unit"], ["column"], axis=0),
        node("Expand", ["more", "column"], ["rest"]),
        node("Concat", ["colours", "places", "rest"], ["whole"], axis=1),
        node("LpNormalization", ["whole"], ["vector"], axis=1, p=2),
        # The first `left` tokens stay; the others merge into the first one.
        node("Sub", ["tokens", "removed"], ["left"]),
        node("Range", ["zero", "tokens", "one"], ["positions"]),
        node("Less", ["positions", "left"], ["kept"]),
        node("Where", ["kept", "positions", "zero"], ["row"]),
        node("Concat", ["batch", "tokens_1d"], ["table"], axis=0),
        node("Expand", ["row", "table"], ["slots"]),
    ]
    return _model(
        helper.make_graph(
            nodes,
            "image",
            [
                helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3]),
                helper.make_tensor_value_info("plan", TensorProto.INT64, [WORKLOAD.depth]),
            ],
            [
                helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", WIDTH]),
                helper.make_tensor_value_info(
                    "slots", TensorProto.INT64, ["batch", WORKLOAD.tokens]
                ),
            ],
            [
                _constant("scale", 255.0, np.float32),
                _constant("sides", [1, 2], np.int64),
                _constant("channels", [3], np.int64),
                _constant("axis_1", [1], np.int64),
                _constant("unit", [1], np.int64),
                _constant("strengths", [red, 1.0, 1.0], np.float32),
                _constant("little", _PATCHES, np.float32),
                _constant("each", 0.01, np.float32),
                _constant("always", _ALWAYS, np.float32),
                _constant("tokens", WORKLOAD.tokens, np.int64),
                _constant("tokens_1d", [WORKLOAD.tokens], np.int64),
                _constant("zero", 0, np.int64),
                _constant("one", 1, np.int64),
            ],
        )
    )


def _text() -> onnx.ModelProto:
    node = helper.make_node
    # Ids 0 to 3 are special tokens without a colour.
    table = np.zeros((4 + len(WORDS), WIDTH), np.float32)
    table[4:, :3] = list(WORDS.values())
    nodes = [
        node("Gather", ["words", "input_ids"], ["read"]),
        node("Unsqueeze", ["text_size", "axis_2"], ["size"]),
        node("Mul", ["read", "size"], ["sized"]),
        node("ReduceSum", ["sized", "axis_1"], ["named"], keepdims=0),
        node("Add", ["named", "always"], ["whole"]),
        node("LpNormalization", ["whole"], ["vector"], axis=1, p=2),
    ]
    always = np.zeros((1, WIDTH), np.float32)
    always[0, -1] = _ALWAYS
    return _model(
        helper.make_graph(
            nodes,
            "text",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "text"]),
                helper.make_tensor_value_info("text_size", TensorProto.FLOAT, ["batch", "text"]),
            ],
            [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", WIDTH])],
            [
                _constant("words", table, np.float32),
                _constant("always", always, np.float32),
                _constant("axis_1", [1], np.int64),
                _constant("axis_2", [2], np.int64),
            ],
        )
    )
