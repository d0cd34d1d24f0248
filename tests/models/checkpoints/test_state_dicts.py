"""timm folders, and state dicts of timm, DeiT-III, SWAG and torchvision: parity and rejection.

`goldens/timm.json` has the outputs of timm and torchvision; `goldens/make_timm.py` writes it.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenfold.models.checkpoints import architectures
from tokenfold.models.checkpoints.checkpoint import Checkpoint, CheckpointError
from tokenfold.models.checkpoints.load import load_classifier as load

GOLDENS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "goldens" / "timm.json").read_text()
)["networks"]
TIMM = [name for name in GOLDENS if name != "torchvision"]
Weights = dict[str, Tensor]


def draw(key: str, shape: tuple[int, ...]) -> Tensor:
    """Draw weights as `make_timm.py` does."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    values = 0.3 * random.standard_normal(shape) + (0.5 if len(shape) == 1 else 0.0)
    return torch.from_numpy(values.astype(np.float32))


def golden_weights(name: str) -> Weights:
    return {key: draw(key, tuple(shape)) for key, shape in GOLDENS[name]["shapes"].items()}


def golden_folder(name: str, folder: Path, **changes: Any) -> str:
    config = {**GOLDENS[name]["config"], **changes}
    height, width = GOLDENS[name]["size"]
    if height != width:
        config["pretrained_cfg"] |= {"crop_mode": "squash", "crop_pct": 1.0}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(golden_weights(name), folder / "model.safetensors")
    return str(folder)


def agrees(checkpoint: Checkpoint, name: str) -> None:
    with torch.no_grad():
        logits = checkpoint.model(draw("image", (2, 3, *GOLDENS[name]["size"]))).logits
    expected = torch.tensor(GOLDENS[name]["logits"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_folder_matches_timm(name: str, tmp_path: Path) -> None:
    checkpoint = load(golden_folder(name, tmp_path))
    agrees(checkpoint, name)
    assert not checkpoint.model.training
    assert checkpoint.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("name", TIMM)
def test_timm_preprocessing(name: str, tmp_path: Path) -> None:
    preprocess = load(golden_folder(name, tmp_path)).preprocess
    config = GOLDENS[name]["config"]["pretrained_cfg"]
    assert list(preprocess.mean) == config["mean"]
    assert list(preprocess.std) == config["std"]
    assert preprocess.interpolation == config["interpolation"]
    assert list(preprocess.size) == list(GOLDENS[name]["size"])
    if preprocess.size[0] == preprocess.size[1]:
        assert preprocess.resize == "shorter"
        assert preprocess.shorter_side == int(16 / config["crop_pct"])
    else:
        assert preprocess.resize == "stretch"


def test_label_descriptions_are_used(tmp_path: Path) -> None:
    names, descriptions = ["n01", "n02", "n03"], {"n01": "a cat", "n03": "a dog"}
    name = "vit_tiny_patch16_224"
    folder = golden_folder(name, tmp_path, label_names=names, label_descriptions=descriptions)
    assert load(folder).labels == ("a cat", "n02", "a dog")
    folder = golden_folder(name, tmp_path, label_names={"0": "x", "1": "y", "2": "z"})
    assert load(folder).labels == ("x", "y", "z")
    for wrong in (["n01"], {"0": "x", "2": "z"}):
        folder = golden_folder(name, tmp_path, label_names=wrong)
        with pytest.raises(CheckpointError, match="label_names must name classes 0 to 2"):
            load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_base_patch16_rpn_224"}, "vit_base_patch16_rpn_224.*supported are"),
        ({"architecture": "vit_base_patch16_siglip_224"}, "siglip.*supported are vit_SIZE"),
        ({"architecture": None}, "None.*supported are"),
        ({"model_args": {}}, "has width 192, but its weights have 16"),
        ({"model_args": {"embed_dim": 16}}, "has depth 12, but its weights have 2"),
        ({"model_args": {"embed_dim": 16, "depth": 2}}, "patch size 16, but its weights have 8"),
        ({"model_args": 3}, "model_args is not an object"),
    ],
)
def test_another_architecture_is_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(golden_folder("vit_tiny_patch16_224", tmp_path, **changes))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"reg_tokens": 4}, "reg_tokens = 4 is not supported"),
        ({"norm_layer": "rmsnorm"}, "norm_layer = 'rmsnorm' is not supported"),
        ({"pool_include_prefix": True}, "pool_include_prefix"),
        ({"act_layer": "mish"}, "act_layer is 'mish'; supported are gelu, "),
        ({"global_pool": "map"}, "global_pool is 'map'; supported are token, avg"),
        ({"img_size": 24}, "5 positions, but images of 24 x 24 pixels have 9 patches of 8"),
        ({"img_size": [8, 8, 8]}, "must be a height and a width"),
        ({"num_heads": 5}, "width 16 does not divide into 5 heads"),
        ({"num_heads": "four"}, "valid integer"),
    ],
)
def test_unsupported_options_are_rejected(
    args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name = "vit_tiny_patch16_224"
    args = {**GOLDENS[name]["config"]["model_args"], **args}
    with pytest.raises(CheckpointError, match=message):
        load(golden_folder(name, tmp_path, model_args=args))


def test_options_without_effect_are_accepted(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    args = {**GOLDENS[name]["config"]["model_args"], "reg_tokens": 0, "pos_embed": "learn"}
    agrees(load(golden_folder(name, tmp_path, model_args=args)), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.bias"), "missing: norm.bias"),
        (lambda w: w.pop("blocks.1.attn.qkv.weight"), r"missing: blocks\.1\.attn\.qkv\.weight"),
        (lambda w: w.pop("head.weight"), "missing: head.weight; only classifiers"),
        (lambda w: w.pop("pos_embed"), "missing: pos_embed"),
        (lambda w: w.update({"rope": torch.ones(1)}), "unknown: rope"),
        (lambda w: w.update({"reg_token": torch.ones(1, 1, 16)}), "register tokens are not"),
        (
            lambda w: w.update({"norm.bias": torch.ones(15)}),
            r"wrong shape: norm\.bias is \(15,\), not \(16,\)",
        ),
        (
            lambda w: w.update({"head.bias": torch.ones(3, dtype=torch.int8)}),
            r"wrong type: head\.bias is torch\.int8",
        ),
        (lambda w: w.update({"pos_embed": torch.ones(5, 16)}), "2 dimensions instead of 3"),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.ones(16, 1, 8, 8)}),
            "supported are square patches of 3 channels",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    golden_folder(name, tmp_path)
    weights = golden_weights(name)
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "heads", "activation", "eps"),
    [
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", 12, "gelu", 1e-6),
        ("vit_base_patch16_gap_224", 16, "gelu", 1e-6),
        ("vit_base_patch16_plus_clip_240", 14, "gelu", 1e-5),
        ("vit_huge_patch14_clip_quickgelu_224.dfn5b", 16, "quick_gelu", 1e-5),
        ("vit_giant_patch14_dinov2", 24, "gelu", 1e-6),
        ("vit_base_patch16_224_miil", 12, "gelu", 1e-6),
        ("deit3_medium_patch16_224", 8, "gelu", 1e-6),
    ],
)
def test_architecture_names_are_parsed(name: str, heads: int, activation: str, eps: float) -> None:
    architecture = architectures.parse(name)
    assert (architecture.heads, architecture.activation, architecture.eps) == (
        heads,
        activation,
        eps,
    )


def plain(dim: int = 128, *, patches: int = 4, extra: Weights | None = None) -> Weights:
    """Return the weights of a network of two layers with timm's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, patches + 1, dim),
        "patch_embed.proj.weight": (dim, 3, 8, 8),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (3, dim),
        "head.bias": (3,),
    }
    for i in range(2):
        for layer, shape in {
            "norm1": (dim,),
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "norm2": (dim,),
            "mlp.fc1": (16, dim),
            "mlp.fc2": (dim, 16),
        }.items():
            shapes[f"blocks.{i}.{layer}.weight"] = shape
            shapes[f"blocks.{i}.{layer}.bias"] = shape[:1]
    return {**{key: draw(key, shape) for key, shape in shapes.items()}, **(extra or {})}


def logits_of(checkpoint: Checkpoint) -> Tensor:
    with torch.no_grad():
        out: Tensor = checkpoint.model(draw("image", (2, 3, 16, 16))).logits
    return out


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".torch", ".safetensors"])
def test_a_bare_state_dict(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(plain(), file)
    else:
        torch.save(plain(), file)
    checkpoint = load(str(file))
    assert checkpoint.model.config.heads == 2
    assert checkpoint.model.config.image_size == (16, 16)
    assert checkpoint.preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        lambda weights: {"state_dict": weights},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"model": {f"module.{key}": value for key, value in weights.items()}},
    ],
)
def test_training_wrappers_are_removed(wrap: Any, tmp_path: Path) -> None:
    torch.save(plain(), tmp_path / "plain.pth")
    torch.save(wrap(plain()), tmp_path / "wrapped.pth")
    expected = logits_of(load(str(tmp_path / "plain.pth")))
    assert torch.equal(logits_of(load(str(tmp_path / "wrapped.pth"))), expected)


def test_deit_3_layer_scale_is_renamed(tmp_path: Path) -> None:
    scales = {f"blocks.{i}.gamma_{n}": draw(f"{i}{n}", (128,)) for i in (0, 1) for n in (1, 2)}
    positions = {"pos_embed": draw("p", (1, 4, 128))}
    torch.save({"model": plain(extra={**scales, **positions})}, tmp_path / "deit_3_small.pth")
    model = load(str(tmp_path / "deit_3_small.pth")).model
    assert model.config.layer_scale
    assert not model.config.position_prefix
    assert torch.equal(model.state_dict()["blocks.1.ls2.gamma"], scales["blocks.1.gamma_2"])


@pytest.mark.parametrize(
    ("file", "mean", "shorter"),
    [
        ("deit_small_patch16_224-cd65a155.pth", 0.485, 256),
        ("vit_small_patch16_224.augreg_in1k.bin", 0.5, 248),
        ("vit_medium_patch32_clip_224.pth", 0.48145466, 224),
    ],
)
def test_the_file_name_tells_the_preprocessing(
    file: str, mean: float, shorter: int, tmp_path: Path
) -> None:
    architecture = architectures.guess(file)
    assert architecture is not None
    assert architecture.dim
    assert architecture.depth
    assert architecture.patch_size
    side = 224 // architecture.patch_size
    dim, patch = architecture.dim, architecture.patch_size
    weights = plain(dim, patches=side * side)
    weights["patch_embed.proj.weight"] = torch.zeros(dim, 3, patch, patch)
    for key in [key for key in weights if key.startswith("blocks.1.")]:
        for layer in range(1, architecture.depth):
            weights[key.replace("blocks.1.", f"blocks.{layer}.")] = weights[key]
    if architecture.clip:
        weights |= {"norm_pre.weight": torch.ones(dim), "norm_pre.bias": torch.zeros(dim)}
        del weights["patch_embed.proj.bias"]
    torch.save(weights, tmp_path / file)
    checkpoint = load(str(tmp_path / file))
    assert checkpoint.model.config.heads == architecture.heads
    assert checkpoint.model.config.eps == architecture.eps
    assert checkpoint.preprocess.mean[0] == mean
    assert checkpoint.preprocess.shorter_side == shorter


def without(*keys: str) -> Weights:
    return {key: value for key, value in plain().items() if key not in keys}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (plain(100), "number of heads of a network of width 100 is unknown; name the file"),
        (plain(extra={"norm_pre.weight": torch.ones(128)}), "GELU and with QuickGELU; name"),
        (without("cls_token"), "without class token exist with different numbers of heads"),
        (plain(patches=7), "8 positions, not a square of patches and 1 other tokens"),
        ({"w": torch.ones(1)}, r"missing: patch_embed\.proj\.weight.*timm's names"),
    ],
)
def test_ambiguous_weights_are_rejected(weights: Weights, message: str, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path / "weights.pth"))


def test_qk_norm_shows_the_heads(tmp_path: Path) -> None:
    norms = {
        f"blocks.{i}.attn.{operand}_norm.{kind}": torch.ones(20)
        for i in (0, 1)
        for operand in "qk"
        for kind in ("weight", "bias")
    }
    torch.save(plain(100, extra=norms), tmp_path / "weights.pth")
    assert load(str(tmp_path / "weights.pth")).model.config.heads == 5


def swag_names(weights: Weights) -> Weights:
    """Map torchvision's names to SWAG's."""
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in {
            ".encoder_layer_": ".layer_",
            ".mlp.0.": ".mlp.linear_1.",
            ".mlp.3.": ".mlp.linear_2.",
            "heads.head.": "head.layers.head.",
        }.items():
            key = key.replace(ours, theirs)
        renamed[key] = (
            value.transpose(0, 1).contiguous() if key == "encoder.pos_embedding" else value
        )
    return renamed


def older_names(weights: Weights) -> Weights:
    """Map torchvision's names to those of its published files."""
    return {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in weights.items()
    }


@pytest.mark.parametrize("layout", [dict, older_names, swag_names])
def test_swag_and_torchvision_match_torchvision(layout: Any, tmp_path: Path) -> None:
    file = tmp_path / "vit_b16_in1k.torch"
    torch.save(layout(golden_weights("torchvision")), file)
    checkpoint = load(str(file))
    agrees(checkpoint, "torchvision")
    preprocess = checkpoint.preprocess
    assert (preprocess.shorter_side, preprocess.interpolation) == (16, "bicubic")


@pytest.mark.parametrize(
    ("file", "expected"),
    [("vit_b_16-c867db91.pth", (256, "bilinear")), ("vit_b_16_lc_swag.pth", (224, "bicubic"))],
)
def test_torchvision_networks_use_its_resize(
    file: str, expected: tuple[int, str], tmp_path: Path
) -> None:
    weights = golden_weights("torchvision")
    weights["encoder.pos_embedding"] = torch.zeros(1, 28 * 28 + 1, 128)  # 224 pixels by 8
    torch.save(weights, tmp_path / file)
    preprocess = load(str(tmp_path / file)).preprocess
    assert (preprocess.shorter_side, preprocess.interpolation) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.layers.head.weight"), r"missing: head\.layers\.head\.weight"),
        (lambda w: w.update({"extra": torch.ones(1)}), "unknown: extra"),
        (
            lambda w: w.update({"encoder.ln.bias": torch.ones(1)}),
            r"wrong shape: encoder\.ln\.bias is \(1,\)",
        ),
        (
            lambda w: w.update({"encoder.pos_embedding": torch.ones(6, 1, 128)}),
            r"encoder\.pos_embedding has 5 patches",
        ),
        (
            lambda w: w.update({"conv_proj.weight": torch.ones(128)}),
            r"conv_proj\.weight has 1 dimensions",
        ),
    ],
)
def test_swag_weights_that_do_not_fit_are_named(change: Any, message: str, tmp_path: Path) -> None:
    weights = swag_names(golden_weights("torchvision"))
    change(weights)
    torch.save(weights, tmp_path / "vit.torch")
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path / "vit.torch"))
