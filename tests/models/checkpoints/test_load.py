"""Sources of checkpoints: recognition, pre-processing, and rejected sources."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import hub, native, processors, random
from tokenfold.models.checkpoints.checkpoint import Checkpoint, CheckpointError
from tokenfold.models.checkpoints.classifiers import CLASSIFIERS, ClassifierSettings
from tokenfold.models.checkpoints.load import load_classifier as load
from tokenfold.models.checkpoints.weights import resize_positions
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer

SETTINGS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """Write a Hugging Face folder without pre-processing."""
    model: Any = transformers.ViTForImageClassification(transformers.ViTConfig(**SETTINGS))
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes a field."""
    content = {**json.loads(file.read_text()), **changes}
    remaining = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(remaining))


def edit_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def same(first: Checkpoint, second: Checkpoint) -> None:
    assert first.model.config == second.model.config
    with torch.no_grad():
        assert torch.equal(first.model(IMAGES).logits, second.model(IMAGES).logits)


# Sources.


def test_a_native_folder(tmp_path: Path) -> None:
    config = VisionConfig(
        image_size=(16, 16), patch_size=8, dim=16, depth=1, heads=2, mlp_dim=8, classes=2
    )
    saved = Checkpoint(VisionTransformer(config).eval(), Preprocess(size=(16, 16)), ("a", "b"))
    native.save(tmp_path, saved)
    loaded = load(str(tmp_path))
    same(loaded, saved)
    assert (loaded.preprocess, loaded.labels) == (saved.preprocess, saved.labels)
    (tmp_path / "tokenfold.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenfold\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing-here", "no such file or folder; a source is a folder in Hugging Face, timm"),
        ("./no/such/folder", "no such file or folder"),
        ("models/weights.pth", "no such file or folder"),
        ("", "no such file or folder|has neither tokenfold"),
        ("random:vit-x16", "allowed are vit-ti16, .*deit-ti16d.*dinov2-g14"),
        ("random:vit-b16-", "no such network"),
        ("random:vit-b16-100", "patches of 16 do not tile"),
        ("random:vit-b16-16000000", "at most 2048 pixels"),
    ],
)
def test_invalid_sources_are_rejected(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(source)


def test_folders_and_files_without_a_checkpoint_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither tokenfold\.json nor config\.json"):
        load(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(CheckpointError, match=r"whose names end in \.safetensors"):
        load(str(tmp_path / "model.onnx"))
    for content, message in (("[1]", "contains a list, not a JSON object"), ("{", "Expecting")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load(str(tmp_path))


class Harmful:
    """Object whose unpickling would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Harmful()}, "bad.pth")
    Path("worse.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(CheckpointError, match="code in a checkpoint is never run"):
            load(name)
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "contains no state dict"),
        ([torch.ones(1)], "contains no state dict"),
        ({}, "contains no state dict"),
        ({"model": {"a": torch.ones(1)}, "model_ema": {}}, "both 'model' and 'model_ema'"),
    ],
)
def test_a_file_without_weights_is_rejected(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_file_is_rejected(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    for content in (b"", b"PK\x03\x04 not really"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="weights"):
            load(str(file))


# Hugging Face folders.


def test_sharded_weights(vit: Path, tmp_path: Path) -> None:
    model: Any = transformers.ViTForImageClassification.from_pretrained(vit)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    same(load(str(tmp_path / "sharded")), load(str(vit)))

    index = tmp_path / "sharded" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    outside = dict.fromkeys(content["weight_map"], "../vit/model.safetensors")
    for weight_map, message in (
        (outside, "is not a file in the same folder"),
        ({**content["weight_map"], "ghost": shards[0].name}, "ghost is missing"),
        (dict(list(content["weight_map"].items())[1:]), "does not list"),
        ([], "weight_map does not map keys to files"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            load(str(tmp_path / "sharded"))
    index.write_text(json.dumps(content))
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=shards[0].name):
        load(str(tmp_path / "sharded"))


def test_pickled_weights(vit: Path) -> None:
    expected = load(str(vit))
    torch.save(load_file(vit / "model.safetensors"), vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    same(load(str(vit)), expected)
    (vit / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load(str(vit))


def test_half_precision_is_converted_to_float32(vit: Path) -> None:
    edit_weights(vit, lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    model = load(str(vit)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_labels(vit: Path) -> None:
    assert load(str(vit)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    edit(vit / "config.json", id2label={"2": "c", "0": "a", "1": "b"})
    assert load(str(vit)).labels == ("a", "b", "c")
    edit(vit / "config.json", id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match="id2label must name classes 0 to 2"):
        load(str(vit))
    edit(vit / "config.json", id2label=None)
    assert load(str(vit)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["SwinForImageClassification"]},
            "architecture is SwinForImageClassification; supported are ViTForImage.*, DeiTFor.*"
            "WithTeacher, Dinov2For.*, CLIPForImageClassification",
        ),
        ({"architectures": None}, "architecture is none; supported are"),
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'; supported are gelu, "),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"patch_size": [8, 4]}, r"patch_size is \(8, 4\); supported are square"),
        ({"num_attention_heads": 3}, "width 16 does not divide into 3 heads"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers: .*valid integer"),
        ({"layer_norm_eps": -1}, "layer_norm_eps: .*greater than 0"),
        ({"quantization_config": {"bits": 8}}, "quantised weights are not supported"),
        ({"num_hidden_layers": 3}, r"missing: vit\.encoder\.layer\.2\."),
        ({"num_hidden_layers": 1}, r"unknown: vit\.encoder\.layer\.1\."),
        ({"intermediate_size": 32}, r"vit\.encoder\.layer\.0\.intermediate\.dense\.weight is"),
        ({"image_size": 20}, "patches of 8 do not tile"),
        ({"image_size": 32}, r"vit\.embeddings\.position_embeddings is \(1, 5, 16\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_rejected(
    changes: dict[str, Any], message: str, vit: Path
) -> None:
    edit(vit / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(vit))
    assert str(vit) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("classifier.weight"), "the weights have no classifier"),
        (
            lambda w: w.pop("vit.encoder.layer.1.attention.attention.key.bias"),
            r"missing: vit\.encoder\.layer\.1\.attention\.attention\.key\.bias",
        ),
        (lambda w: w.update({"vit.rope": torch.ones(1)}), r"unknown: vit\.rope"),
        (
            lambda w: w.update(
                {"vit.encoder.layer.0.attention.attention.key.weight": torch.ones(4, 16)}
            ),
            r"attention\.key\.weight \(4, 16\).* differ, so they cannot be joined",
        ),
        (
            lambda w: w.update({"vit.embeddings.cls_token": torch.ones(1, 1, 4)}),
            r"wrong shape: vit\.embeddings\.cls_token is \(1, 1, 4\), not \(1, 1, 16\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str, vit: Path) -> None:
    edit_weights(vit, change)
    with pytest.raises(CheckpointError, match=message):
        load(str(vit))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("ViTForImageClassification", transformers.ViTConfig()),
        ("DeiTForImageClassification", transformers.DeiTConfig()),
        ("Dinov2ForImageClassification", transformers.Dinov2Config()),
        ("CLIPForImageClassification", transformers.CLIPVisionConfig()),
    ],
)
def test_defaults_match_transformers(architecture: str, config: Any) -> None:
    settings = ClassifierSettings.model_validate(CLASSIFIERS[architecture].defaults)
    for field in ClassifierSettings.model_fields:
        if hasattr(config, field):
            assert getattr(settings, field) == getattr(config, field), field


def test_long_lists_of_problems_are_shortened(vit: Path) -> None:
    edit(vit / "config.json", num_hidden_layers=12)
    with pytest.raises(CheckpointError, match=r"; and \d+ more$"):
        load(str(vit))


def test_unused_weights_are_dropped(vit: Path) -> None:
    expected = load(str(vit))
    edit_weights(vit, lambda w: w.update({"vit.pooler.dense.weight": torch.ones(16, 16)}))
    same(load(str(vit)), expected)


# Pre-processing.


def processor(vit: Path, **fields: Any) -> Preprocess:
    (vit / "preprocessor_config.json").write_text(json.dumps(fields))
    return load(str(vit)).preprocess


def test_stretching(vit: Path) -> None:
    expected = Preprocess(size=(16, 16), interpolation="bilinear")
    square = {"height": 16, "width": 16}
    assert processor(vit, image_processor_type="ViTImageProcessor", size=square) == expected
    assert processor(vit, feature_extractor_type="ViTFeatureExtractor", size=16) == expected
    assert processor(vit, size=square, do_center_crop=True, crop_size=16) == expected
    assert processor(vit, size=[16, 24]).size == (16, 24)
    assert processor(vit, size={"height": 24, "width": 16, "shortest_edge": None}).size == (24, 16)


def test_cropping(vit: Path) -> None:
    crop = {"height": 16, "width": 16}
    expected = Preprocess(size=(16, 16), resize="shorter", shorter_side=18, interpolation="bicubic")
    common = {"do_center_crop": True, "crop_size": crop, "resample": 3}
    assert processor(vit, **common, size={"shortest_edge": 18}) == expected
    assert processor(vit, **common, size={"height": 18, "width": 18}) == expected
    assert processor(vit, **common, size=18, feature_extractor_type="DeiTFeature") == expected
    assert processor(vit, **common, size=18, feature_extractor_type="CLIPFeature") == expected


def test_normalising(vit: Path) -> None:
    preprocess = processor(
        vit, size=16, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3], resample=1
    )
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert preprocess.interpolation == "lanczos"
    preprocess = processor(vit, size=16, do_normalize=False)
    assert (preprocess.mean, preprocess.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_resize": False}, "do_resize is off"),
        ({"do_rescale": False}, "scaled by 1/255"),
        ({"rescale_factor": 0.00784}, "scaled by 1/255"),
        ({"resample": 5}, "resample is 5; allowed are 0 nearest, 1 lanczos"),
        ({"size": {"shortest_edge": 16}}, "shortest_edge without a centre crop"),
        ({"size": {"longest_edge": 16}}, "must have height and width, or shortest_edge, not"),
        ({"size": None}, "must have height and width"),
        ({"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 16}, "is larger"),
        ({"size": [16, 24], "do_center_crop": True, "crop_size": 16}, "16 x 24 resize"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"size": "big"}, "size"),
    ],
)
def test_unsupported_preprocessing_is_rejected(
    fields: dict[str, Any], message: str, vit: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        processor(vit, **{"size": 16, **fields})
    assert "preprocessor_config.json" in str(caught.value)


def test_a_missing_file_gives_the_default_preprocessing(
    vit: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess = load(str(vit)).preprocess
    assert preprocess == Preprocess(size=(16, 16), interpolation="bilinear")
    assert "assuming the default pre-processing of vit" in caplog.text
    deit = processors.default("deit", (224, 224))
    assert (deit.shorter_side, deit.mean[0]) == (256, 0.485)
    clip = processors.default("clip", (336, 336))
    assert (clip.shorter_side, clip.interpolation) == (336, "bicubic")
    assert processors.default("clip", (336, 224)).resize == "stretch"


# Positions.


def test_only_square_grids_are_resized() -> None:
    positions = torch.randn(1, 10, 4)
    resized = resize_positions(positions, 1, (2, 5))
    assert resized.shape == (1, 11, 4)
    assert torch.equal(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resize_positions(positions, 1, (3, 3)), positions)
    for prefix in (0, 2, 10):
        with pytest.raises(CheckpointError, match="do not form a square"):
            resize_positions(positions, prefix, (2, 5))


# The hub.


def test_a_hub_id_is_downloaded(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        downloads.append((repository, "pytorch_model.bin" in allow_patterns))
        return str(vit)

    monkeypatch.setattr(hub, "snapshot_download", download)
    expected = load(str(vit))
    same(load("owner/name"), expected)
    assert downloads == [("owner/name", False)]
    torch.save(load_file(vit / "model.safetensors"), vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    same(load("owner/name"), expected)
    assert downloads[1:] == [("owner/name", False), ("owner/name", True)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "owner/name: no such repository on the hub"),
        (errors.GatedRepoError, "owner/name: access is restricted"),
        (errors.LocalEntryNotFoundError, "owner/name: the hub cannot be reached"),
        (errors.OfflineModeIsEnabled, "owner/name: the hub cannot be reached"),
        (errors.HfHubHTTPError, "owner/name: "),
        (OSError, "owner/name: "),
    ],
)
def test_hub_errors_are_reported(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        # The constructors need a response, whose type depends on the version.
        raise error.__new__(error)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=message):
        load("owner/name")


# Random weights.


@pytest.mark.parametrize("name", ["vit-ti16-64", "deit-ti16d-64", "deit3-s16-64", "dinov2-s14-56"])
def test_random_weights_are_deterministic(name: str) -> None:
    first, second = load(f"random:{name}"), load(f"random:{name}")
    size = first.preprocess.size
    assert size == first.model.config.image_size == (int(name[-2:]),) * 2
    assert len(first.labels) == first.model.config.classes == 1000
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        logits = first.model(images).logits
        assert torch.equal(logits, second.model(images).logits)
    # Logits differ between images, at a usual scale.
    assert 0.3 < logits.std(1).min() <= logits.std(1).max() < 5
    assert all((logits[a] - logits[b]).std() > 0.03 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_random_networks_have_the_published_sizes() -> None:
    published = {
        "vit-b16": (768, 12, 12, 197),
        "vit-s32": (384, 12, 6, 50),
        "deit-s16d": (384, 12, 6, 198),
        "mae-b16": (768, 12, 12, 197),
        "clip-b32": (768, 12, 12, 50),
    }
    for name, (dim, depth, heads, tokens) in published.items():
        config = load(f"random:{name}").model.config
        assert (config.dim, config.depth, config.heads) == (dim, depth, heads)
        assert config.workload("tome").tokens == tokens
    assert {"vit-l16", "vit-h14", "deit-ti16d", "deit-b16d", "clip-b16"} < random.NETWORKS.keys()


def test_random_attention_is_not_uniform() -> None:
    # With uniform attention, tokens would become equal, and tests of merging would show nothing.
    model = load("random:vit-ti16-64").model
    with torch.no_grad():
        tokens = model.embed(model.patch_embed(torch.randn(1, 3, 64, 64)))
        block: Any = model.blocks[0]
        q, k, _ = block.attn.qkv(block.norm1(tokens)).reshape(17, 3, 3, 64).unbind(1)
        scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(64)
    assert 0.5 < scores.std() < 2
