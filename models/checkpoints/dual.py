"""Dual encoders as Hugging Face folders: CLIP, SigLIP, and SigLIP 2 of a fixed resolution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenfold.models.checkpoints import (
    clip_tokenizer,
    dual_names,
    positions,
    processors,
    tokenizer,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    DualCheckpoint,
    load_weights,
    network_config,
    rename,
)
from tokenfold.models.checkpoints.dual_kinds import CLIP, SIGLIP, DualKind
from tokenfold.models.checkpoints.families import ACTIVATIONS, FAMILIES
from tokenfold.models.checkpoints.families import Settings as VisionSettings
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.weight_names import shape, without
from tokenfold.models.dual import DualConfig, DualEncoder

CONFIG = "config.json"

# In old files, or of networks of any resolution.
UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
NAFLEX = "siglip2"

# What `eos_token_id` was in all CLIPs, wrongly, and what those are then read as.
LEGACY_END = 2


class TextSettings(BaseModel):
    """What in `text_config` changes the result; which defaults there are depends on the kind."""

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


class ImageSettings(VisionSettings):
    """The same of `vision_config`."""

    vision_use_head: bool = True


class _Defaults(NamedTuple):
    """Of a kind, where `transformers` has other ones than the settings here."""

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
    """Whether a `config.json` is that of a dual encoder, or of one that is told to be none of ours.

    Classifiers on CLIP's image tower are not: they have no text.
    """
    named = _architectures(config)
    if any(name in FAMILIES for name in named):
        return False
    return config.get("model_type") in (CLIP.name, SIGLIP.name, NAFLEX) or any(
        name in ARCHITECTURES for name in named
    )


def load(folder: Path) -> DualCheckpoint:
    """Read a folder that `save_pretrained` of `CLIPModel` or `SiglipModel` wrote.

    Raises:
        CheckpointError: another architecture, a setting that is not supported, weights that do not
            fit, or a tokenizer that is missing or of another network; the message says which.
    """
    config = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    kind = _kind(config, where)
    image = _part(config, "vision", ImageSettings, DEFAULTS[kind.name].image, where)
    text = _part(config, "text", TextSettings, DEFAULTS[kind.name].text, where)
    preprocess = processors.read(folder, kind.name, image.size)
    weights = without(folder_weights(folder), UNUSED)
    try:
        network = _network(kind, image, text, preprocess.size, weights, where)
        layout = dual_names.huggingface(network)
        ours = rename(dual_names.prepare_huggingface(weights), layout)
        ours = dual_names.shape(ours, network.image.dim)
        if tuple(side // network.image.patch_size for side in image.size) != network.image.grid:
            ours["image.pos_embed"] = positions.resize(
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


def _architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _kind(config: Mapping[str, Any], where: str) -> DualKind:
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: quantised weights are not supported")
    if config.get("model_type") == NAFLEX:
        raise CheckpointError(
            f"{where}: SigLIP 2 for images of any shape (NaFlex) is not supported; the networks of "
            "a fixed resolution are"
        )
    named = _architectures(config)
    for name in named or [""]:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not named:
        return CLIP if config["model_type"] == CLIP.name else SIGLIP
    raise CheckpointError(
        f"{where}: the architecture is {', '.join(named)}; supported of dual encoders are "
        f"{', '.join(ARCHITECTURES)}"
    )


def _part(
    config: Mapping[str, Any], name: str, kind: type[S], defaults: Mapping[str, Any], where: str
) -> S:
    """A tower's settings; old configurations have them twice, and then the latter count."""
    parts = [config.get(key) or {} for key in (f"{name}_config", f"{name}_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{where}: {name}_config is no object")
    given = {key: value for part in parts for key, value in part.items() if value is not None}
    try:
        return kind.model_validate({**defaults, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{where}: {name}_config.{at}: {problem['msg']}") from error


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
    if image.num_channels != 3:
        raise CheckpointError(f"{where}: num_channels is {image.num_channels}, but images have 3")
    if not image.vision_use_head:
        raise CheckpointError(f"{where}: without its head an image has no vector")
    patch = image.patch_size
    if not isinstance(patch, int):
        if patch[0] != patch[1]:
            raise CheckpointError(f"{where}: patches are square, not {patch}")
        patch = patch[0]
    own: dict[str, Any] = {}
    head = "text_model.head.weight"
    if kind is CLIP:
        own["classes"] = shape(weights, "visual_projection.weight", 2)[0]
        head = "text_projection.weight"
    return network_config(
        DualConfig,
        where,
        image=kind.image
        | own
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
            "classes": shape(weights, head, 2)[0],
            "activation": ACTIVATIONS[text.hidden_act],
            "eps": text.layer_norm_eps,
        },
        scores=kind.scores,
    )
