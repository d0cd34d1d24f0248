"""Parity to 1e-4: unreduced logits against `transformers`, reduced ones against official outputs.

The official outputs are arrays in `tests/fixtures`, or in the folder that TOKENFOLD_FIXTURES names.
The files determine the number and the sizes of the cases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.models.published_pumer import PUBLISHED
from tokenfold.bundle.pair_workload import Rates, ViltWorkload
from tokenfold.bundle.workload import Plan
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.models.checkpoints.load import load_classifier
from tokenfold.models.checkpoints.meter import published_rates
from tokenfold.models.networks.blocks import Block
from tokenfold.models.networks.cross import CrossLayer, CrossPair
from tokenfold.models.networks.operators import Tokens
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

TOLERANCE = 1e-4
FIXTURES = Path(os.environ.get("TOKENFOLD_FIXTURES") or Path(__file__).parents[1] / "fixtures")
OPS, VIT = "tome_ops.npz", "tome_vit.npz"
PUMER_VILT, PUMER_METER = "pumer_vilt_blocks.npz", "pumer_meter_cross.npz"

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 0.05,  # large, so that it affects the logits
}
CLASSIFIER: dict[str, Any] = {**SMALL, "num_labels": 7}
VIT_LIKE: dict[str, Any] = {**CLASSIFIER, "intermediate_size": 80}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomise(model: nn.Module) -> None:
    """Randomise every weight, including norms, biases, LayerScale and positions."""
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 0.5 if parameter.ndim == 1 else 0.0
            parameter.copy_(0.2 * torch.randn_like(parameter) + offset)


def saved(model: Any, folder: Path, size: tuple[int, int]) -> Checkpoint:
    """Save and load a network, as a user's checkpoint would be loaded."""
    randomise(model)
    model.eval().save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size[0], "width": size[1]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return load_classifier(str(folder))


def agree(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def vit(**changes: Any) -> Any:
    config = transformers.ViTConfig(**{**VIT_LIKE, **changes})
    return transformers.ViTForImageClassification(config)


def dinov2(**changes: Any) -> Any:
    config = transformers.Dinov2Config(**{**CLASSIFIER, "mlp_ratio": 2, **changes})
    return transformers.Dinov2ForImageClassification(config)


def clip(**changes: Any) -> Any:
    vision = {**SMALL, "intermediate_size": 80, **changes}
    text = {**SMALL, "intermediate_size": 16, "vocab_size": 10, "num_hidden_layers": 1}
    kind: Any = transformers.CLIPConfig  # its annotations lack num_labels
    config = kind(vision_config=vision, text_config=text, num_labels=7)
    return transformers.CLIPForImageClassification(config)


def deit(kind: type[Any]) -> Any:
    return kind(transformers.DeiTConfig(**VIT_LIKE))


# Model, image size, and whether `transformers` has to resize its positions.
FAMILIES: dict[str, tuple[Callable[[], Any], tuple[int, int], bool]] = {
    "vit": (vit, (32, 32), False),
    "vit, no qkv bias": (lambda: vit(qkv_bias=False, layer_norm_eps=0.5), (32, 32), False),
    "vit, gelu_new": (lambda: vit(hidden_act="gelu_new"), (32, 32), False),
    "vit, relu": (lambda: vit(hidden_act="relu"), (32, 32), False),
    "vit, silu": (lambda: vit(hidden_act="silu"), (32, 32), False),
    "vit, not square": (lambda: vit(image_size=(24, 40)), (24, 40), False),
    "vit, larger images": (vit, (48, 40), True),
    "deit": (lambda: deit(transformers.DeiTForImageClassification), (32, 32), False),
    "deit with teacher": (
        lambda: deit(transformers.DeiTForImageClassificationWithTeacher),
        (32, 32),
        False,
    ),
    "deit with teacher, larger images": (
        lambda: deit(transformers.DeiTForImageClassificationWithTeacher),
        (40, 48),
        True,
    ),
    "dinov2": (dinov2, (32, 32), False),
    "dinov2, swiglu": (lambda: dinov2(use_swiglu_ffn=True), (32, 32), False),
    "dinov2, smaller images": (dinov2, (24, 24), False),
    "dinov2, not square, as many patches": (dinov2, (16, 64), False),
    "dinov2, no mask token": (lambda: dinov2(use_mask_token=False), (32, 32), False),
    "clip": (clip, (32, 32), False),
    "clip, gelu": (lambda: clip(hidden_act="gelu"), (32, 32), False),
    "clip, larger images": (clip, (40, 48), True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_unreduced_logits_match_transformers(family: str, tmp_path: Path) -> None:
    build, size, resized = FAMILIES[family]
    model = build()
    ours = saved(model, tmp_path, size).model
    images = torch.randn(3, 3, *size)
    options = {"interpolate_pos_encoding": True} if resized else {}
    with torch.no_grad():
        expected = model(images, **options).logits
        assert expected.std() > 0.1  # logits differ between classes and images
        agree(ours(images).logits, expected)
        nothing = ours(images, [0] * 3, [ToMe()] * 3).logits
        agree(nothing, expected)


def test_mae_matches_the_trunk_of_transformers_with_mean_pooling(tmp_path: Path) -> None:
    settings = {**SMALL, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 80}
    settings["layer_norm_eps"] = 1e-6
    trunk: Any = transformers.ViTMAEModel(transformers.ViTMAEConfig(**settings, mask_ratio=0.0))
    randomise(trunk)
    fc_norm, head = nn.LayerNorm(64, 1e-6), nn.Linear(64, 7)
    randomise(fc_norm)
    randomise(head)

    weights = timm_names(trunk.state_dict(), depth=3)
    weights |= {f"fc_norm.{key}": value for key, value in fc_norm.state_dict().items()}
    weights |= {f"head.{key}": value for key, value in head.state_dict().items()}
    torch.save({"model": weights, "epoch": 99}, tmp_path / "mae_finetuned.pth")
    ours = load_classifier(str(tmp_path / "mae_finetuned.pth")).model

    trunk.eval().layernorm = nn.Identity()  # MAE's classifier norms the mean, not the tokens
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        # The trunk shuffles the patches, which does not change their mean.
        patches = trunk(images).last_hidden_state[:, 1:]
        agree(ours(images).logits, head(fc_norm(patches.mean(1))))


def timm_names(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return ViTMAEModel's weights with the official names, without the last norm."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
    }
    for i in range(depth):
        names |= {
            f"blocks.{i}.norm1": f"layers.{i}.layernorm_before",
            f"blocks.{i}.attn.proj": f"layers.{i}.attention.o_proj",
            f"blocks.{i}.norm2": f"layers.{i}.layernorm_after",
            f"blocks.{i}.mlp.fc1": f"layers.{i}.mlp.fc1",
            f"blocks.{i}.mlp.fc2": f"layers.{i}.mlp.fc2",
        }
    renamed = {}
    for ours, theirs in names.items():
        for key in weights:
            if key == theirs or key.startswith(f"{theirs}."):
                renamed[ours + key.removeprefix(theirs)] = weights[key]
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [weights[f"layers.{i}.attention.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


def archive(name: str) -> Mapping[str, np.ndarray]:
    if not (FIXTURES / name).is_file():
        pytest.fail(f"{FIXTURES / name} does not exist; TOKENFOLD_FIXTURES has to name its folder")
    with np.load(FIXTURES / name) as arrays:
        return {key: arrays[key] for key in arrays}


def cases(name: str, field: str) -> list[str]:
    """Return the names of the cases with the field, or one name that fails if there are none."""
    if not (FIXTURES / name).is_file():
        return ["missing"]
    with np.load(FIXTURES / name) as arrays:
        suffix = f"_{field}"
        return [key.removesuffix(suffix) for key in arrays if key.endswith(suffix)] or ["none"]


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("case", cases(OPS, "metric"))
def test_matching_and_merging_match_tome(case: str) -> None:
    arrays = {
        key.removeprefix(f"{case}_"): array
        for key, array in archive(OPS).items()
        if key.startswith(f"{case}_")
    }
    assert arrays, f"{FIXTURES / OPS} has no cases"
    matcher = ToMe(bool(arrays["class_token"]), bool(arrays["distill_token"]))
    x, size = tensor(arrays["x"]), tensor(arrays["size"]).squeeze(-1)
    r = int(arrays["r"])
    slots = matcher(tensor(arrays["metric"]), size, r)
    width = matcher.width(x.shape[1], r)
    y, new_size = slotting.reduce(x, size, slots, width)
    agree(y, tensor(arrays["y"]))
    agree(new_size, tensor(arrays["size_out"]).squeeze(-1))
    expected = tensor(arrays["source"]) > 0.5
    assert torch.equal(slotting.source(slots, width), expected)
    if "unmerged" in arrays:
        agree(slotting.unmerge(tensor(arrays["y"]), slots), tensor(arrays["unmerged"]))


def official_vit(arrays: Mapping[str, np.ndarray]) -> VisionTransformer:
    weights = {key.removeprefix("w:"): tensor(arrays[key]) for key in arrays if key[:2] == "w:"}
    sizes = {key.removeprefix("cfg:"): arrays[key] for key in arrays if key[:4] == "cfg:"}
    height, width = np.broadcast_to(sizes["img_size"], 2).tolist()
    config = VisionConfig(
        image_size=(height, width),
        patch_size=int(sizes["patch_size"]),
        dim=int(sizes["embed_dim"]),
        depth=int(sizes["depth"]),
        heads=int(sizes["num_heads"]),
        mlp_dim=weights["blocks.0.mlp.fc1.weight"].shape[0],
        classes=int(sizes["num_classes"]),
    )
    model = VisionTransformer(config).eval()
    model.load_state_dict(weights)
    return model


def test_the_official_vit_unreduced() -> None:
    arrays = archive(VIT)
    with torch.no_grad():
        logits = official_vit(arrays)(tensor(arrays["x"])).logits
    agree(logits, tensor(arrays["logits_unreduced"]))


@pytest.mark.parametrize("case", cases(VIT, "plan"))
def test_the_official_vit_with_tome(case: str) -> None:
    arrays = archive(VIT)
    assert case != "none", f"{FIXTURES / VIT} has no cases"
    model = official_vit(arrays)
    plan = arrays[f"{case}_plan"].tolist()
    matchers = [ToMe()] * model.config.depth
    proportional = bool(arrays[f"{case}_prop_attn"])
    with torch.no_grad():
        output = model(tensor(arrays["x"]), plan, matchers, proportional=proportional)
    agree(output.logits, tensor(arrays[f"{case}_logits"]))
    agree(output.size, tensor(arrays[f"{case}_size"]))
    source = slotting.source(output.slots, output.size.shape[1])
    assert torch.equal(source, tensor(arrays[f"{case}_source"]) > 0)


def weights_of(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names start with the prefix, which is removed."""
    start = f"w:{prefix}"
    return {k.removeprefix(start): tensor(arrays[k]) for k in arrays if k.startswith(start)}


def depth_of(arrays: Mapping[str, np.ndarray], prefix: str = "") -> int:
    """Return the number of layers in the weights."""
    depth = 0
    while weights_of(arrays, f"{prefix}{depth}."):
        depth += 1
    assert depth, f"there are no weights of a layer {prefix}0"
    return depth


def plan_of(rates: Rates, depth: int, text: int, image: int) -> Plan:
    """Return the counts of every layer."""
    workload = ViltWorkload(
        method="pumer",
        text=text,
        image=image,
        most_text=text,
        layers=tuple(range(depth)),
        depth=depth,
        dim=1,
        mlp_dim=1,
        metric_dim=1,
        stem=0,
        head=0,
    )
    return workload.plan_at(rates)


def heads_of(dim: int, deviation: Callable[[int], float]) -> int:
    """Return the number of heads with the smallest deviation; the files do not contain it.

    Args:
        deviation: maps a number of heads to the largest difference from the official output.
    """
    return min((h for h in range(1, dim + 1) if dim % h == 0), key=deviation)


def official_blocks(arrays: Mapping[str, np.ndarray], heads: int) -> list[Block]:
    blocks = []
    for layer in range(depth_of(arrays)):
        weights = weights_of(arrays, f"{layer}.")
        hidden, dim = weights["mlp.fc1.weight"].shape
        block = Block(dim, heads, hidden)
        block.load_state_dict(weights)
        blocks.append(block)
    return blocks


def pumer_vilt(arrays: Mapping[str, np.ndarray], case: str, heads: int) -> Tokens:
    x, mask = tensor(arrays[f"{case}_x"]), tensor(arrays[f"{case}_text_mask"])
    text, image = mask.shape[1], x.shape[1] - mask.shape[1]
    blocks = official_blocks(arrays, heads)
    prune, merge, words = arrays[f"{case}_prune_merge_text"].tolist()
    plan = plan_of((prune, merge, words), len(blocks), text, image)
    mask = torch.cat([mask, torch.ones(x.shape[0], image)], dim=1)
    tokens = Tokens.start(x, mask, text=text)
    shapes = []
    with torch.no_grad():
        for layer, block in enumerate(blocks):
            if prune:
                counts = plan[3 * layer : 3 * layer + 3]
                tokens = block(tokens, PUBLISHED, PuMer(), counts, size=tokens.size)
            else:  # as published, the rate is then a count over both modalities
                tokens = block(tokens, PUBLISHED, ToMe(), int(merge), size=tokens.size)
            shapes.append([tokens.x.shape[1], tokens.text])
    assert shapes == arrays[f"{case}_shapes"].tolist()
    return tokens


@pytest.mark.parametrize("case", cases(PUMER_VILT, "text_mask"))
def test_pumer_in_vilt_blocks(case: str) -> None:
    arrays = archive(PUMER_VILT)
    assert case != "none", f"{FIXTURES / PUMER_VILT} has no cases"
    expected = tensor(arrays[f"{case}_y"])

    def deviation(heads: int) -> float:
        return float((pumer_vilt(arrays, case, heads).x - expected).abs().max())

    heads = heads_of(expected.shape[2], deviation)
    out = pumer_vilt(arrays, case, heads)
    agree(out.x, expected)
    agree(out.size, tensor(arrays[f"{case}_mask"]))


def cross_layer(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Return the weights of a layer with our names."""
    theirs = weights_of(arrays, prefix)
    ours = {}
    for kind in ("weight", "bias"):
        for name, our_name in (("attention", "self_attn"), ("crossattention", "cross_attn")):
            q, k, v = (theirs[f"{name}.self.{part}.{kind}"] for part in ("query", "key", "value"))
            ours[f"{our_name}.q.{kind}"], ours[f"{our_name}.kv.{kind}"] = q, torch.cat([k, v])
            ours[f"{our_name}.proj.{kind}"] = theirs[f"{name}.output.dense.{kind}"]
            ours[f"{our_name}.norm.{kind}"] = theirs[f"{name}.output.LayerNorm.{kind}"]
        ours[f"mlp.mlp.fc1.{kind}"] = theirs[f"intermediate.dense.{kind}"]
        ours[f"mlp.mlp.fc2.{kind}"] = theirs[f"output.dense.{kind}"]
        ours[f"mlp.norm.{kind}"] = theirs[f"output.LayerNorm.{kind}"]
    return ours


def official_pairs(arrays: Mapping[str, np.ndarray], heads: int) -> list[CrossPair]:
    pairs = []
    for layer in range(depth_of(arrays, "text.")):
        weights = {name: cross_layer(arrays, f"{name}.{layer}.") for name in ("text", "image")}
        hidden, dim = weights["text"]["mlp.mlp.fc1.weight"].shape
        pair = CrossPair(dim, heads, hidden, 1e-12, form="sequential", protect_class=False)
        parts: list[tuple[str, CrossLayer]] = [("text", pair.text), ("image", pair.image)]
        for name, part in parts:
            part.load_state_dict(weights[name])
        pairs.append(pair)
    return pairs


def pumer_meter(
    arrays: Mapping[str, np.ndarray], case: str, heads: int
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Return the text, the image, and the numbers of tokens of both after each layer."""
    x, y = tensor(arrays[f"{case}_text"]), tensor(arrays[f"{case}_image"])
    text, image = Tokens.start(x, tensor(arrays[f"{case}_text_mask"])), Tokens.start(y)
    pairs = official_pairs(arrays, heads)
    prune, merge, words = arrays[f"{case}_prune_merge_text"].tolist()
    plan = plan_of(published_rates(prune, merge, words), len(pairs), x.shape[1], y.shape[1])
    shapes = []
    with torch.no_grad():
        for layer, pair in enumerate(pairs):
            counts = plan[3 * layer : 3 * layer + 3]
            text, image = pair(text, image, PUBLISHED, PuMer(), counts)
            shapes.append([text.x.shape[1], image.x.shape[1]])
    return text.x, image.x, shapes


@pytest.mark.parametrize("case", cases(PUMER_METER, "text_mask"))
def test_pumer_in_the_cross_modal_layers_of_meter(case: str) -> None:
    arrays = archive(PUMER_METER)
    assert case != "none", f"{FIXTURES / PUMER_METER} has no cases"
    expected_text = tensor(arrays[f"{case}_text_out"])
    expected_image = tensor(arrays[f"{case}_image_out"])

    def deviation(heads: int) -> float:
        return float((pumer_meter(arrays, case, heads)[0] - expected_text).abs().max())

    text, image, shapes = pumer_meter(arrays, case, heads_of(expected_text.shape[2], deviation))
    agree(text, expected_text)
    agree(image, expected_image)
    assert shapes == arrays[f"{case}_shapes"].tolist()


def test_a_missing_fixture_folder_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{__name__}.FIXTURES", tmp_path)
    assert cases(OPS, "metric") == ["missing"]
    with pytest.raises(pytest.fail.Exception, match="does not exist; TOKENFOLD_FIXTURES"):
        archive(OPS)
