"""ViLT checkpoints of every origin: settings, order of answers, and rejected checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors
from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import answers, hub, native, pumer
from tokenfold.models.checkpoints.checkpoint import CheckpointError, PairCheckpoint
from tokenfold.models.checkpoints.load import load, load_classifier
from tokenfold.models.networks.pair import HeadConfig, images
from tokenfold.models.networks.vilt import Vilt, ViltConfig

WORDS = [f"w{index}" for index in range(26)]
QUESTION = torch.tensor([[2, 5, 6, 7, 3]])
ANSWERS = ("", "red", "blue", "2")

HEADS: dict[PairTask, HeadConfig] = {
    "vqa": HeadConfig(classes=4, hidden=128, scores="sigmoid"),
    "entail": HeadConfig(classes=3, hidden=128),
    "reason": HeadConfig(classes=2, hidden=128),
    "match": HeadConfig(classes=1, scores="sigmoid"),
}
NAMES: dict[PairTask, str] = {
    "vqa": "vqa_classifier",
    "entail": "ve_classifier",
    "reason": "nlvr2_classifier",
    "match": "rank_output",
}


HEAD_OF = {str(task): name for task, name in NAMES.items()}


def network(*tasks: PairTask, **changes: Any) -> Vilt:
    """Return a random network of width 64, which has one head by the published rule."""
    fields: dict[str, Any] = {
        "image_size": (32, 32),
        "patch_size": 8,
        "dim": 64,
        "depth": 3,
        "heads_per_layer": 1,
        "mlp_dim": 96,
        "vocabulary": 30,
        "most_text": 12,
        "modalities": 3 if "reason" in tasks else 2,
        "layers": (2,),
        "heads": {task: HEADS[task] for task in tasks},
    }
    model = Vilt(ViltConfig.model_validate(fields | changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def logits(model: Any, task: PairTask) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    image = torch.randn(1, 2, 3, 32, 32, generator=generator)
    out: Tensor = model(image if images(task) == 2 else image[:, 0], QUESTION, task=task)
    return out


def same(loaded: PairCheckpoint, model: Vilt) -> None:
    assert loaded.model.config.heads == model.config.heads
    for task in model.config.heads:
        torch.testing.assert_close(logits(loaded.model, task), logits(model, task))


def official(model: Vilt) -> dict[str, Tensor]:
    """Return the weights with their published names, with a distinct token type for the text."""
    segment = torch.randn(2, model.config.dim, generator=torch.Generator().manual_seed(7))
    renamed = {"text_embeddings.position_ids": torch.arange(12)[None]}
    for key, tensor in model.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "text_embed":
            words, kind = rest.split(".")
            theirs = {"words": "word_embeddings", "positions": "position_embeddings"}
            renamed[f"text_embeddings.{theirs.get(words, 'LayerNorm')}.{kind}"] = tensor
        elif part == "heads":
            task, _, layer = rest.partition(".")
            renamed[f"{HEAD_OF[task]}.{layer}"] = tensor
        elif part == "modality":
            renamed["token_type_embeddings.weight"] = tensor
        elif part == "pooler":
            renamed[f"pooler.dense.{rest}"] = tensor
        else:
            renamed[f"transformer.{key}"] = tensor
    renamed["text_embeddings.token_type_embeddings.weight"] = segment
    positions = "text_embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] - segment[0]
    return renamed


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    word_level(words, 12).save(folder / "tokenizer.json")


def write_official(folder: Path, model: Vilt) -> Path:
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    torch.save({"state_dict": official(model), "epoch": 3}, folder / "vilt.ckpt")
    return folder / "vilt.ckpt"


PUMER: dict[str, Any] = {
    "model_type": "vilt",
    "num_heads": 1,
    "num_layers": 3,
    "hidden_size": 64,
    "max_text_len": 12,
    "tokenizer": "bert-base-uncased",
    "prune_layers": None,
    "reduce_layers": [1, 2],
    "prune_r": 0.1,
    "merge_r": 0.3,
    "merge_text": 0.2,
    "sim_method": "mh",
    "merge_style": "tome",
}
ARCHITECTURES: dict[PairTask, str] = {
    "vqa": "ViltForQuestionAnswering",
    "entail": "ViltForVisualEntailment",
    "reason": "ViltForVisualReasoning",
    "match": "ViltForImageAndTextRetrieval",
}


def write_pumer(folder: Path, model: Vilt, **changes: Any) -> Path:
    """Write a folder like PuMer's on the hub, and add a tokenizer."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    weights = official(model)
    del weights["text_embeddings.position_ids"]
    renamed = {
        key if key.startswith(tuple(NAMES.values())) else f"vilt.{key}": tensor
        for key, tensor in weights.items()
    }
    torch.save(renamed, folder / "pytorch_model.bin")
    task = next(iter(model.config.heads))
    config = {"architectures": [ARCHITECTURES[task]], **PUMER, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_huggingface(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "vocab_size": 30,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 12,
        "image_size": 32,
        "patch_size": 8,
        **({} if "id2label" in changes else {"num_labels": 4}),
    }
    config = transformers.ViltConfig(**{**settings, **changes})
    name = "QuestionAnswering" if config.num_images < 0 else "ImagesAndTextClassification"
    model: Any = getattr(transformers, f"ViltFor{name}")(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def pair(source: Path) -> PairCheckpoint:
    loaded = load(str(source))
    assert isinstance(loaded, PairCheckpoint)
    assert not loaded.model.training
    return loaded


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes a field."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# Hugging Face; tests/models/networks/test_vilt.py compares the logits with `transformers`.


def test_a_folder_tells_its_answers_and_preprocessing(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, id2label=dict(enumerate(ANSWERS)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViltImageProcessor",
                "size": {"shortest_edge": 32},
                "size_divisor": 16,
                "resample": 3,
                "image_mean": [0.1, 0.2, 0.3],
            }
        )
    )
    loaded = pair(folder)
    assert loaded.labels == {"vqa": ANSWERS}
    assert loaded.model.config.heads["vqa"].scores == "sigmoid"
    assert loaded.weighted
    assert loaded.preprocess == Preprocess(
        size=(32, 32),
        resize="bounded",
        shorter_side=32,
        longest=53,
        multiple=16,
        interpolation="bicubic",
        mean=(0.1, 0.2, 0.3),
    )
    assert loaded.text.encode("w1 w2").ids.tolist() == [2, 5, 6, 3]
    assert loaded.text.most_tokens == 12
    with pytest.raises(CheckpointError, match="takes images with texts"):
        load_classifier(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"hidden_size": "x"}, "hidden_size: Input should be"),
        ({"hidden_size": 30}, "does not divide into 4 heads"),
        ({"vocab_size": 31}, "wrong shape: .*word_embeddings"),
        ({"num_hidden_layers": 3}, r"missing: vilt\.encoder\.layer\.2"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["ViltForMaskedLM"]}, "the architecture is ViltForMaskedLM"),
        ({"architectures": ["ViltForImagesAndTextClassification"]}, "num_images is -1"),
        ({"id2label": {"0": "a", "1": "b"}}, "has 2 answers, not 4"),
        ({"id2label": ["a"]}, "id2label is not an object"),
        ({"id2label": {"0": "a", "1": "b", "2": "b", "3": "c"}}, "duplicate answers"),
    ],
)
def test_invalid_folders_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_huggingface(tmp_path)
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(str(folder))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["False", "True"], None),
        (["True", "False"], "their order must be"),
        (["a", "b"], "the labels of reason are"),
        (["false", "true", "maybe"], "the labels of reason are"),
        ([], None),
    ],
)
def test_the_second_class_of_reason_is_true(
    names: list[str], message: str | None, tmp_path: Path
) -> None:
    labels = {"id2label": dict(enumerate(names))} if names else {"num_labels": 2}
    folder = write_huggingface(tmp_path, num_images=2, modality_type_vocab_size=3, **labels)
    if message is None:
        assert pair(folder).labels == {"reason": ("false", "true")}
        return
    with pytest.raises(CheckpointError, match=message):
        load(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": {"height": 3, "width": 3}}, "size needs shortest_edge"),
        ({"size_divisor": 12}, "patches of 8 do not tile"),
        ({"do_resize": False}, "do_resize is off"),
        ({"size_divisor": 0}, "size_divisor: Input should be"),
    ],
)
def test_invalid_image_processors_are_rejected(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_huggingface(tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load(str(folder))


def test_another_processor_is_supported(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
        )
    )
    assert pair(folder).preprocess.resize == "stretch"


# Official files.


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("vqa", ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        ("reason", ("false", "true")),
        ("match", ()),
    ],
)
def test_an_official_file(task: PairTask, labels: tuple[str, ...], tmp_path: Path) -> None:
    model = network(task)
    loaded = pair(write_official(tmp_path, model))
    same(loaded, model)
    assert loaded.labels == {task: labels}
    assert loaded.weighted
    assert isinstance(loaded.model, Vilt)
    assert loaded.model.config.eps == 1e-6
    assert loaded.model.config.layers == (2,)
    assert loaded.preprocess.resize == "bounded"
    assert loaded.preprocess.longest == 53


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(file, weights_only=True)
    change(content["state_dict"])
    torch.save(content, file)


def test_retrieval_uses_the_ranking_head(tmp_path: Path) -> None:
    model = network("match")
    file = write_official(tmp_path, model)
    matching_head = {"itm_score.fc.weight": torch.ones(2, 64), "itm_score.fc.bias": torch.ones(2)}
    rewrite(file, lambda weights: weights.update(matching_head))
    same(pair(file), model)
    rewrite(file, lambda weights: [weights.pop(f"rank_output.{x}") for x in ("weight", "bias")])
    loaded = pair(file)
    assert loaded.labels == {"match": ("no match", "match")}
    assert logits(loaded.model, "match").shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("pooler.dense.bias"), r"missing: pooler\.dense\.bias"),
        (lambda w: w.update(odd=torch.ones(1)), "unknown: odd"),
        (lambda w: w.pop("vqa_classifier.3.weight"), "no head of a task, vqa_classifier"),
        (
            lambda w: w.update({"transformer.pos_embed": torch.ones(1, 16, 64)}),
            "do not form a square",
        ),
        (lambda w: w.update({"transformer.pos_embed": torch.ones(17, 64)}), "2 dimensions instead"),
        (lambda w: w.pop("transformer.pos_embed"), r"missing: transformer\.pos_embed"),
        (
            lambda w: w.update({"transformer.patch_embed.proj.weight": torch.ones(64, 1, 8, 8)}),
            "3 channels",
        ),
        (
            lambda w: w.update({"transformer.patch_embed.proj.weight": torch.ones(60, 3, 8, 8)}),
            "number of heads of a network of width 60",
        ),
        (
            lambda w: w.update({"text_embeddings.token_type_embeddings.weight": torch.ones(2, 6)}),
            "differ in width",
        ),
        (lambda w: w.update({"pooler.dense.bias": torch.ones(3)}), r"wrong shape: pooler"),
    ],
)
def test_invalid_official_files_are_rejected(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    file = write_official(tmp_path, network("vqa"))
    rewrite(file, change)
    with pytest.raises(CheckpointError, match=message):
        load(str(file))


def test_two_images_need_a_third_modality(tmp_path: Path) -> None:
    file = write_official(tmp_path, network("reason"))
    two = {"token_type_embeddings.weight": torch.ones(2, 64)}
    rewrite(file, lambda weights: weights.update(two))
    with pytest.raises(CheckpointError, match="needs 3 modality embeddings"):
        load(str(file))


# PuMer's folders.


@pytest.mark.parametrize("task", HEADS)
def test_a_folder_of_pumer(task: PairTask, tmp_path: Path) -> None:
    model = network(task)
    loaded = pair(write_pumer(tmp_path, model))
    same(loaded, model)
    assert (loaded.model.config.layers, loaded.model.config.rates) == ((1, 2), (0.1, 0.3, 0.2))
    assert not loaded.weighted
    assert loaded.preprocess == Preprocess(size=(32, 32), interpolation="bilinear")
    if task == "entail":
        assert loaded.labels[task] == ("contradiction", "neutral", "entailment")


NONE: dict[str, Any] = {"reduce_layers": None, "prune_r": 0, "merge_r": 0, "merge_text": 0}


def test_the_name_tells_the_reduction(tmp_path: Path) -> None:
    model = network("vqa")
    loaded = pair(write_pumer(tmp_path / "vilt-vqa2-p0.2-r0.5-t0.1-12", model, **NONE))
    assert (loaded.model.config.layers, loaded.model.config.rates) == ((1, 2), (0.2, 0.5, 0.1))
    assert not loaded.weighted
    plain = pair(write_pumer(tmp_path / "vilt-vqa2-ft", model, **NONE))
    assert (plain.model.config.layers, plain.model.config.rates) == ((2,), (0.1, 0.3, 0.2))
    assert plain.weighted
    same(pair(write_pumer(tmp_path / "vilt-vqa2-p0.1-r0.3-t0.2-12", model)), model)
    with pytest.raises(
        CheckpointError, match=r"reduces layers \(1, 2\) .*but the name vilt.* \(2, 5, 8\)"
    ):
        load(str(write_pumer(tmp_path / "vilt-vqa2-p0.1-r0.3-t0.2-258", model)))


def test_a_hub_id_tells_the_reduction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pumer(tmp_path / "0123abc", network("vqa"), **NONE)  # as the cache names it
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    loaded = load("csarron/vilt-vqa2-p0.2-r0.5-t0.1-12")
    assert isinstance(loaded, PairCheckpoint)
    assert (loaded.model.config.layers, loaded.model.config.rates) == ((1, 2), (0.2, 0.5, 0.1))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vilt-vqa2-p0.1-r0.3-t0.2-258", (2, 5, 8)),
        ("vilt-ve-p0.1r0.3t0.2-2468", (2, 4, 6, 8)),
        ("p.1-r.3-t.2-mh-tome-258-e20", (2, 5, 8)),
    ],
)
def test_published_names(name: str, layers: tuple[int, ...]) -> None:
    assert pumer.read({}, name, "it") == (layers, (0.1, 0.3, 0.2))
    assert pumer.read({}, "vilt-vqa2-ft", "it") is None
    with pytest.raises(CheckpointError, match="with pruning"):
        pumer.read({}, name.replace("0.1", ".0").replace("p.1", "p.0"), "it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_layers": [1]}, "learned pruning is not supported"),
        ({"reduce_layers": None}, "without reduce_layers"),
        ({"prune_r": 0}, "supported are shares up to 1 with pruning"),
        ({"merge_r": 8}, "supported are shares up to 1"),
        ({"merge_style": "tip"}, "merge_style is 'tip'"),
        ({"sim_method": "k_metric"}, "sim_method is 'k_metric'"),
        ({"prune_r": "a lot"}, "prune_r: Input should be"),
        ({"num_heads": "one"}, "num_heads is 'one'"),
        ({"reduce_layers": [3]}, "reducing layers are 0 to 2"),
    ],
)
def test_another_reduction_is_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_pumer(tmp_path, network("vqa"))
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(str(folder))


# Checkpoints without a tokenizer.


def test_a_missing_tokenizer_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").mkdir()
    write_tokenizer(tmp_path / "hub")
    repositories = []

    def download(repository: str, **_: Any) -> str:
        repositories.append(repository)
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", download)
    folder = write_pumer(tmp_path / "pumer", network("vqa"))
    (folder / "tokenizer.json").unlink()
    assert pair(folder).text.vocabulary == 30
    file = write_official(tmp_path / "official", network("vqa"))
    (file.parent / "tokenizer.json").unlink()
    assert pair(file).text.vocabulary == 30
    assert repositories == ["bert-base-uncased", "google-bert/bert-base-uncased"]

    def offline(repository: str, **_: Any) -> str:
        raise errors.LocalEntryNotFoundError(repository)

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no tokenizer, .*bert-base-uncased cannot be"):
        load(str(folder))


def test_a_tokenizer_of_another_network_is_rejected(tmp_path: Path) -> None:
    folder = write_pumer(tmp_path, network("vqa"))
    write_tokenizer(folder, [f"w{index}" for index in range(27)])
    with pytest.raises(CheckpointError, match="the tokenizer has 31 words, the network 30"):
        load(str(folder))


# Answers: 40 in random order, of which the sixth is empty.

MANY = [f"answer {(index * 7) % 40}" for index in range(40)]
MANY[5] = ""
IDS = {str(index): name for index, name in enumerate(MANY)}
SPARSE = {index: name for index, name in IDS.items() if name}


def many(folder: Path, kind: str) -> Path:
    heads = {"vqa": HeadConfig(classes=40, hidden=128, scores="sigmoid")}
    model = network("vqa", heads=heads)
    return write_pumer(folder, model) if kind == "pumer" else write_official(folder, model)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answers.json", MANY),
        ("id2label.json", IDS),
        ("vqa2-id2label.json", {"id2label": IDS}),
        ("vqa_dict.json", {"answer2id": {}, "id2answer": SPARSE}),
        ("ans2label.json", {name: index for index, name in enumerate(MANY)}),
        ("answers.txt", "\n".join(MANY) + "\n"),
    ],
)
def test_the_official_order_in_every_form(name: str, content: Any, tmp_path: Path) -> None:
    file = many(tmp_path, "official")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert pair(file).labels == {"vqa": tuple(MANY)}


def test_the_order_of_the_hub(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path, id2label=dict(enumerate(MANY)))
    (folder / "answers.json").write_text("[]")  # the configuration comes first
    assert pair(folder).labels == {"vqa": tuple(MANY)}


@pytest.mark.parametrize("content", [sorted(MANY), MANY, {"id2answer": SPARSE}])
def test_the_order_of_pumer_is_alphabetical(content: Any, tmp_path: Path) -> None:
    folder = many(tmp_path, "pumer")
    (folder / "vqa2_label2ans.json").write_text(json.dumps(content))
    assert pair(folder).labels == {"vqa": tuple(sorted(MANY))}


def test_pumers_order_is_rejected_for_official_weights(tmp_path: Path) -> None:
    file = many(tmp_path, "official")
    (tmp_path / "vqa2_label2ans.json").write_text(json.dumps(sorted(MANY)))
    with pytest.raises(CheckpointError, match="alphabetical order, which only PuMer's"):
        load(str(file))


def test_without_a_file_answers_are_numbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert pair(many(tmp_path, "official")).labels["vqa"][39] == "LABEL_39"
    assert "the labels are LABEL_0 to" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "Expecting value"),
        ("3", "is neither a list of answers"),
        ("[1, 2]", "is neither a list of answers"),
        (json.dumps(MANY[:39]), "has 39 answers, not 40"),
        (json.dumps([*MANY, "more"]), "has 41 answers, not 40"),
        (json.dumps([*MANY[:39], MANY[0]]), "duplicate answers"),
        (json.dumps({**SPARSE, "7": 7}), "an answer is not a string"),
        (
            json.dumps({index: name for index, name in SPARSE.items() if index != "9"}),
            "missing id is 5",
        ),
        (json.dumps({"red": 0, "blue": 0}), "the same id"),
        ("{}", "has 0 answers"),
    ],
)
def test_a_damaged_file_of_answers_is_rejected(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        answers.from_folder(tmp_path, 40, alphabetical=False)


def test_contradictory_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(MANY))
    (tmp_path / "vqa_dict.json").write_text(json.dumps({"id2answer": SPARSE}))
    assert answers.from_folder(tmp_path, 40, alphabetical=False) == tuple(MANY)
    (tmp_path / "answers.txt").write_text("\n".join(MANY[::-1]))
    with pytest.raises(CheckpointError, match=r"answers\.json and answers\.txt and vqa_dict"):
        answers.from_folder(tmp_path, 40, alphabetical=False)


# Tokenfold's own format.


def saved(folder: Path) -> PairCheckpoint:
    checkpoint = PairCheckpoint(
        network("vqa", "entail", "reason", "match"),
        Preprocess(size=(32, 32), interpolation="bicubic"),
        {
            "vqa": ANSWERS,
            "entail": ("contradiction", "neutral", "entailment"),
            "reason": ("false", "true"),
            "match": (),
        },
        word_level(WORDS, 12),
        weighted=False,
    )
    native.save(folder, checkpoint)
    return checkpoint


def test_native_folder_round_trip(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    loaded = pair(tmp_path)
    assert loaded.model.config == checkpoint.model.config
    assert isinstance(checkpoint.model, Vilt)
    same(loaded, checkpoint.model)
    for task in checkpoint.labels:
        assert torch.equal(logits(loaded.model, task), logits(checkpoint.model, task))
    assert (loaded.preprocess, loaded.labels, loaded.weighted) == (
        checkpoint.preprocess,
        checkpoint.labels,
        False,
    )
    encoded = loaded.text.encode("w1 w2 unknown " + "w3 " * 20)
    assert encoded.ids.tolist() == [2, 5, 6, 1, *[7] * 7, 3]
    assert encoded.cut


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "kind is 'other'; allowed are image, vilt, meter"),
        ({"kind": None}, "validation error"),
        ({"weighted": None}, "weighted"),
        ({"labels": {"vqa": ANSWERS}}, "labels for vqa, but heads for vqa, entail"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_invalid_descriptions_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    edit(tmp_path / "tokenfold.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path))


def test_damaged_files_are_rejected(tmp_path: Path) -> None:
    saved(tmp_path)
    description = json.loads((tmp_path / "tokenfold.json").read_text())
    labels = {**description["labels"], "entail": ["yes", "no"]}
    edit(tmp_path / "tokenfold.json", labels=labels)
    with pytest.raises(CheckpointError, match="2 labels for entail, but 3 logits"):
        load(str(tmp_path))
    saved(tmp_path)
    write_tokenizer(tmp_path, [f"w{index}" for index in range(50)])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 54 words, the network 30"):
        load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load(str(tmp_path))
    saved(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(str(tmp_path))


# Random weights.


def test_random_networks(tmp_path: Path) -> None:
    loaded = load("random:vilt-b32-64")
    assert isinstance(loaded, PairCheckpoint)
    config = loaded.model.config
    assert (config.image_size, config.patch_size, config.dim) == ((64, 64), 32, 768)
    assert loaded.text.vocabulary == config.vocabulary == 30522
    assert len(loaded.labels["vqa"]) == config.heads["vqa"].classes == 3129
    assert loaded.text.encode("word7 word8").ids.tolist() == [2, 11, 12, 3]
    native.save(tmp_path, loaded)
    ids = torch.from_numpy(loaded.text.encode("word7 word8").ids)[None]
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        out = loaded.model(image, ids.expand(2, -1), task="vqa")
        assert (out[0] - out[1]).std() > 0.05
        assert torch.equal(pair(tmp_path).model(image, ids.expand(2, -1), task="vqa"), out)
    for name, message in (("vilt-b32-100", "do not tile"), ("vilt-b32-4096", "at most 2048")):
        with pytest.raises(CheckpointError, match=message):
            load(f"random:{name}")
