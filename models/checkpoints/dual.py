"""Dual encoders in Hugging Face folders: CLIP, SigLIP, and SigLIP 2 of a fixed resolution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.models.checkpoints import (
    clip_tokenizer,
    dual_names,
    processors,
    tokenizer,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    DualCheckpoint,
    architecture_names,
    network_config,
    parse_settings,
)
from tokenfold.models.checkpoints.classifiers import (
    ACTIVATIONS,
    CLASSIFIERS,
    ClassifierSettings,
)
from tokenfold.models.checkpoints.dual_kinds import CLIP, SIGLIP, DualKind
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.weights import (
    load_weights,
    rename,
    resize_positions,
    weight_shape,
    without_prefixes,
)
from tokenfold.models.networks.dual import DualConfig, DualEncoder

CONFIG = "config.json"

# Present in old files, or in networks of any resolution.
UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
NAFLEX = "siglip2"

# The wrong `eos_token_id` of old CLIPs, which pool the highest id instead.
LEGACY_END = 2


class TextSettings(BaseModel):
    """Fields of `text_config` that change the result; `DEFAULTS` has defaults for each kind."""

    model_config = ConfigDict(extra="ignore")

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(default=12, ge=1)
    num_attention_heads: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    hidden_act: str
    layer_norm_eps: float = Field(gt=0)
    eos_token_id: int = 49407


class ImageSettings(ClassifierSettings):
    """Fields of `vision_config` that change the result."""

    vision_use_head: bool = True


class _Defaults(NamedTuple):
    """Defaults of `transformers` for a kind that differ from those of the settings above."""

    image: dict[str, Any]
    text: dict[str, Any]


DEFAULTS = {
    CLIP.name: _Defaults(
        {"layer_norm_eps": 1e-5, "patch_size": 32, "hidden_act": "quick_gelu"},
        {
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    ),
    SIGLIP.name: _Defaults(
        {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    ),
}
ARCHITECTURES = {"CLIPModel": CLIP, "SiglipModel": SIGLIP}

S = TypeVar("S", bound=BaseModel)


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a dual encoder, supported or not.

    A classifier on CLIP's image tower is not a dual encoder.
    """
    names = architecture_names(config)
    if any(name in CLASSIFIERS for name in names):
        return False
    return config.get("model_type") in (CLIP.name, SIGLIP.name, NAFLEX) or any(
        name in ARCHITECTURES for name in names
    )


def load(folder: Path) -> DualCheckpoint:
    """Read a folder that `save_pretrained` of `CLIPModel` or `SiglipModel` wrote.

    Raises:
        CheckpointError: the architecture or a setting is not supported, the weights do not fit, or
            the tokenizer is missing or belongs to another network.
    """
    config = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    kind = _kind(config, where)
    image = _part(config, "vision", ImageSettings, DEFAULTS[kind.name].image, where)
    text = _part(config, "text", TextSettings, DEFAULTS[kind.name].text, where)
    preprocess = processors.read(folder, kind.name, image.size)
    weights = without_prefixes(folder_weights(folder), UNUSED)
    try:
        network = _network(kind, image, text, preprocess.size, weights, where)
        layout = dual_names.huggingface(network)
        ours = rename(dual_names.prepare_huggingface(weights), layout)
        ours = dual_names.reshape(ours, network.image.dim)
        if tuple(side // network.image.patch_size for side in image.size) != network.image.grid:
            ours["image.pos_embed"] = resize_positions(
                ours["image.pos_embed"], network.image.protected, network.image.grid
            )
        model = DualEncoder(network)
        load_weights(model, ours, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    encoder = tokenizer.find(
        folder,
        kind.tokenizer,
        network.text.most_text,
        network.text.vocabulary,
        siglip=kind is SIGLIP,
    )
    if kind is CLIP:
        end = None if text.eos_token_id == LEGACY_END else text.eos_token_id
        clip_tokenizer.check_end(encoder, end, f"{where}: text_config.eos_token_id")
    return DualCheckpoint(model.eval(), preprocess, encoder, kind.template)


def _kind(config: Mapping[str, Any], where: str) -> DualKind:
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: quantised weights are not supported")
    if config.get("model_type") == NAFLEX:
        raise CheckpointError(
            f"{where}: SigLIP 2 for images of any shape (NaFlex) is not supported; use a network "
            "of a fixed resolution"
        )
    names = architecture_names(config)
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names:
        return CLIP if config["model_type"] == CLIP.name else SIGLIP
    raise CheckpointError(
        f"{where}: the architecture is {', '.join(names)}; supported dual encoders are "
        f"{', '.join(ARCHITECTURES)}"
    )


def _part(
    config: Mapping[str, Any], name: str, kind: type[S], defaults: Mapping[str, Any], where: str
) -> S:
    """Return a tower's settings; of the two copies in old configurations the second one counts."""
    parts = [config.get(key) or {} for key in (f"{name}_config", f"{name}_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{where}: {name}_config is not an object")
    fields = {key: value for part in parts for key, value in part.items() if value is not None}
    return parse_settings(kind, {**defaults, **fields}, f"{where}: {name}_config.")


def _network(
    kind: DualKind,
    image: ImageSettings,
    text: TextSettings,
    size: tuple[int, int],
    weights: Mapping[str, Any],
    where: str,
) -> DualConfig:
    for part, settings in (("vision", image), ("text", text)):
        if settings.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"{where}: {part}_config.hidden_act is {settings.hidden_act!r}; supported are "
                f"{', '.join(ACTIVATIONS)}"
            )
    if not image.vision_use_head:
        raise CheckpointError(f"{where}: vision_use_head is false; supported is true")
    patch = image.square_patch(where)
    projection: dict[str, Any] = {}
    head = "text_model.head.weight"
    if kind is CLIP:
        projection["classes"] = weight_shape(weights, "visual_projection.weight", 2)[0]
        head = "text_projection.weight"
    return network_config(
        DualConfig,
        where,
        image=kind.image
        | projection
        | {
            "image_size": size,
            "patch_size": patch,
            "cut_edges": any(side % patch for side in size),
            "dim": image.hidden_size,
            "depth": image.num_hidden_layers,
            "heads": image.num_attention_heads,
            "mlp_dim": image.intermediate_size,
            "activation": ACTIVATIONS[image.hidden_act],
            "eps": image.layer_norm_eps,
        },
        text=kind.text
        | {
            "vocabulary": text.vocab_size,
            "most_text": text.max_position_embeddings,
            "dim": text.hidden_size,
            "depth": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            "mlp_dim": text.intermediate_size,
            "classes": weight_shape(weights, head, 2)[0],
            "activation": ACTIVATIONS[text.hidden_act],
            "eps": text.layer_norm_eps,
        },
        scores=kind.scores,
    )
