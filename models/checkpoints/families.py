"""The classifiers of Hugging Face that we read: what each computes, and its weights' names.

The names are those on disk, which `transformers` kept while its modules were renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.models.blocks import Activation
from tokenfold.models.checkpoints.dual_names import huggingface_blocks
from tokenfold.models.checkpoints.weight_names import Names, layer
from tokenfold.models.vit import VisionConfig

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Settings(BaseModel):
    """What in `config.json` changes the result, with the defaults of `transformers`."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: int = Field(default=768, ge=1)
    num_hidden_layers: int = Field(default=12, ge=1)
    num_attention_heads: int = Field(default=12, ge=1)
    intermediate_size: int = Field(default=3072, ge=1)
    mlp_ratio: float = Field(default=4, gt=0)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size


class Family(NamedTuple):
    """One architecture.

    Attributes:
        kind: which usual pre-processing it has, see `processors`.
        defaults: of `config.json`, where they differ from those of `Settings`.
        network: settings -> what differs from a plain ViT, as fields of VisionConfig.
        names: network -> its weights, each with the checkpoint's names of its parts.
        unused: prefixes of weights that the classifier never uses, so they are dropped.
    """

    kind: str
    defaults: dict[str, Any]
    network: Callable[[Settings], dict[str, Any]]
    names: Callable[[VisionConfig], Names]
    unused: tuple[str, ...]


def _vit_network(_: Settings) -> dict[str, Any]:
    return {}


def _deit_network(_: Settings) -> dict[str, Any]:
    # Without teacher the distillation token is there too, but nobody asks it.
    return {"distill_token": True}


def _distilled_network(_: Settings) -> dict[str, Any]:
    return {"distill_token": True, "pool": "class+distill"}


def _dinov2_network(settings: Settings) -> dict[str, Any]:
    hidden = int(settings.hidden_size * settings.mlp_ratio)
    if settings.use_swiglu_ffn:
        # SwiGLU keeps two thirds of the width, rounded up to a multiple of 8.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {
        "mlp_dim": hidden,
        "gated_mlp": settings.use_swiglu_ffn,
        "layer_scale": True,
        "pool": "class+mean",
    }


def _clip_network(_: Settings) -> dict[str, Any]:
    # The classifier takes the mean of the patches as the last block leaves them: CLIP's own
    # post_layernorm belongs to the class token, which it does not use.
    return {"pre_norm": True, "patch_bias": False, "final_norm": "none", "pool": "mean"}


def _vit_names(prefix: str, heads: dict[str, str]) -> Callable[[VisionConfig], Names]:
    """The names that ViT, DeiT and DINOv2 share."""

    def names(network: VisionConfig) -> Names:
        dinov2 = prefix == "dinov2"
        embeddings = f"{prefix}.embeddings"
        table: Names = {
            "cls_token": (f"{embeddings}.cls_token",),
            "pos_embed": (f"{embeddings}.position_embeddings",),
        }
        if network.distill_token:
            table["dist_token"] = (f"{embeddings}.distillation_token",)
        layer(table, "patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
        for i in range(network.depth):
            ours, theirs = f"blocks.{i}", f"{prefix}.encoder.layer.{i}"
            attention = f"{theirs}.attention"
            layer(table, f"{ours}.norm1", f"{theirs}.{'norm1' if dinov2 else 'layernorm_before'}")
            layer(table, f"{ours}.norm2", f"{theirs}.{'norm2' if dinov2 else 'layernorm_after'}")
            parts = [f"{attention}.attention.{part}" for part in ("query", "key", "value")]
            layer(table, f"{ours}.attn.qkv", *parts, bias=network.qkv_bias)
            layer(table, f"{ours}.attn.proj", f"{attention}.output.dense")
            if not dinov2:
                fc1, fc2 = "intermediate.dense", "output.dense"
            elif network.gated_mlp:
                fc1, fc2 = "mlp.weights_in", "mlp.weights_out"
            else:
                fc1, fc2 = "mlp.fc1", "mlp.fc2"
            layer(table, f"{ours}.mlp.fc1", f"{theirs}.{fc1}")
            layer(table, f"{ours}.mlp.fc2", f"{theirs}.{fc2}")
            if network.layer_scale:
                table[f"{ours}.ls1.gamma"] = (f"{theirs}.layer_scale1.lambda1",)
                table[f"{ours}.ls2.gamma"] = (f"{theirs}.layer_scale2.lambda1",)
        layer(table, "norm", f"{prefix}.layernorm")
        for ours, head in heads.items():
            layer(table, ours, head)
        return table

    return names


def _clip_names(network: VisionConfig) -> Names:
    embeddings = "vision_model.embeddings"
    table: Names = {
        "cls_token": (f"{embeddings}.class_embedding",),
        "pos_embed": (f"{embeddings}.position_embedding.weight",),
        "patch_embed.proj.weight": (f"{embeddings}.patch_embedding.weight",),
    }
    layer(table, "norm_pre", "vision_model.pre_layrnorm")  # spelt so
    huggingface_blocks(table, "blocks", "vision_model.encoder.layers", network.depth)
    layer(table, "head", "classifier")
    return table


FAMILIES: dict[str, Family] = {
    "ViTForImageClassification": Family(
        "vit", {}, _vit_network, _vit_names("vit", {"head": "classifier"}), ("vit.pooler.",)
    ),
    "DeiTForImageClassification": Family(
        "deit", {}, _deit_network, _vit_names("deit", {"head": "classifier"}), ("deit.pooler.",)
    ),
    "DeiTForImageClassificationWithTeacher": Family(
        "deit",
        {},
        _distilled_network,
        _vit_names("deit", {"head": "cls_classifier", "head_dist": "distillation_classifier"}),
        ("deit.pooler.",),
    ),
    "Dinov2ForImageClassification": Family(
        "dinov2",
        {"layer_norm_eps": 1e-6, "patch_size": 14},
        _dinov2_network,
        _vit_names("dinov2", {"head": "classifier"}),
        ("dinov2.embeddings.mask_token",),
    ),
    "CLIPForImageClassification": Family(
        "clip",
        {"layer_norm_eps": 1e-5, "patch_size": 32, "hidden_act": "quick_gelu"},
        _clip_network,
        _clip_names,
        ("vision_model.post_layernorm.", "vision_model.embeddings.position_ids"),
    ),
}
