"""Recall, agreement and neighbours of a dual encoder's levels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from tests.export.quality import manifests
from tokenfold.bundle.manifest import Manifest, Similarity, TextSpec
from tokenfold.bundle.preprocess import Pixels
from tokenfold.export.quality.dual import Gallery, measure, nearest, neighbours
from tokenfold.export.quality.photos import DataError
from tokenfold.export.stages import Workers
from tokenfold.runtime.dual import Float, ImageVectors, Int

WORKLOAD = tiny.dual().config.workload("tome")
HALF = (4, 2, 1)


def unit(draw: np.random.Generator, *shape: int) -> Float:
    values = draw.standard_normal(shape)
    vectors: Float = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return vectors


@given(st.integers(2, 40), st.integers(1, 600), st.integers(1, 12), st.integers(0, 9))
def test_nearest_equals_a_full_sort(images: int, queries: int, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    gallery, query_vectors = unit(draw, images, 4), unit(draw, queries, 4)
    count = min(count, images - 1)
    itself = draw.integers(0, images, queries)
    for exclude in (None, itself):
        scores = query_vectors.astype(np.float64) @ gallery.T.astype(np.float64)
        if exclude is not None:
            scores[np.arange(queries), exclude] = -np.inf
        indices = nearest(query_vectors, gallery, count, exclude=exclude)
        assert indices.shape == (queries, count)
        nearest_scores = np.sort(np.take_along_axis(scores, indices, 1), axis=1)
        np.testing.assert_allclose(nearest_scores, np.sort(scores, axis=1)[:, -count:], atol=1e-6)


def test_neighbours_are_shares_of_those_at_the_gallery_level() -> None:
    draw = np.random.default_rng(0)
    exact = unit(draw, 1500, 16)
    near = exact + 0.01 * unit(draw, 1500, 16)
    far = unit(draw, 1500, 16)
    shares = neighbours({"exact": exact, "near": near, "far": far})
    assert [shares[level][level] for level in shares] == [1.0, 1.0, 1.0]
    assert 0.8 < shares["near"]["exact"] < 1
    # Random vectors share 10 of 1,499 neighbours on average.
    assert shares["far"]["exact"] < 0.03
    # Of three images, each has two neighbours, and any query finds both.
    few = neighbours({"exact": exact[:3], "far": far[:3]})
    assert few == {"exact": {"exact": 1.0, "far": 1.0}, "far": {"exact": 1.0, "far": 1.0}}


class Colours:
    """Network whose vectors are mean colours; a reduced plan leaves blue out."""

    def embed_images(
        self, images: Pixels, plan: Sequence[int], *, slots: bool = False
    ) -> ImageVectors:
        assert not slots
        mean = images.mean((1, 2)).astype(np.float32) + 1
        if any(plan):
            mean[:, 2] = 0
        return ImageVectors(mean / np.linalg.norm(mean, axis=1, keepdims=True), None)

    def embed_texts(self, ids: Int, size: Float) -> Float:
        assert size.all()
        colours = {word: axis for axis, word in enumerate(("ant", "bee", "cat"))}
        text = tiny.dual_checkpoint().text
        known = {int(text.encode(word).ids[1]): axis for word, axis in colours.items()}
        return np.eye(3, dtype=np.float32)[[known[int(row[1])] for row in ids]]


def manifest() -> Manifest:
    return manifests.manifest(
        "dual",
        WORKLOAD,
        {"exact": WORKLOAD.unreduced, "half": HALF},
        tasks={"embed": ()},
        text=TextSpec(most_tokens=12),
        similarity=Similarity(width=40, scale=20.0, scores="softmax"),
        preprocess=tiny.PREPROCESS,
    )


COLOURS = [(250, 5, 5), (5, 250, 5), (5, 5, 250), (200, 40, 250)]


def folder(path: Path, captions: Sequence[tuple[int, str]] = ()) -> Path:
    path.mkdir()
    for at, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(path / f"{at}.png")
    if captions:
        lines = [{"task": "retrieve", "images": [f"{at}.png"], "text": t} for at, t in captions]
        (path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def test_recall_is_of_texts_among_all_images(tmp_path: Path) -> None:
    captions = [(0, "ant"), (1, "bee"), (2, "cat"), (3, "cat")]
    gallery = Gallery.read(folder(tmp_path / "a", captions))
    assert [caption.image for caption in gallery.captions] == [0, 1, 2, 3]
    network, steps = Colours(), list[None]()
    profiles = measure(
        manifest(),
        network,
        gallery,
        tiny.dual_checkpoint().text,
        unreduced=network,
        workers=Workers(2, lambda: steps.append(None)),
    )
    assert len(steps) == 4
    exact, half = (profiles[name].quality["embed"] for name in ("exact", "half"))
    assert (exact.metric, exact.samples, exact.value) == ("recall", 4, 0.75)
    # Without blue, several images are equal, and a search finds only the first of them.
    assert half.value == 0.5
    assert exact.low < 0.75 < exact.high
    assert profiles["exact"].neighbours["exact"] == 1.0
    assert set(profiles["half"].neighbours) == {"exact", "half"}


def test_without_texts_levels_agree_with_the_unreduced_network(tmp_path: Path) -> None:
    gallery = Gallery.read(folder(tmp_path / "a"))
    network, text = Colours(), tiny.dual_checkpoint().text
    profiles = measure(manifest(), network, gallery, text, unreduced=network, workers=Workers())
    exact, half = (profiles[name].quality["embed"] for name in ("exact", "half"))
    assert (exact.metric, exact.samples, exact.value) == ("agreement", 4, 1.0)
    assert half.value < 1


def test_galleries_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="holds one image"):
        Gallery.read(tmp_path / "one")
    source = folder(tmp_path / "a", [(0, "ant")])
    line = {"task": "vqa", "images": ["0.png"], "text": "what?", "answer": "it"}
    (source / "items.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="it has no item of the task retrieve"):
        Gallery.read(source)
