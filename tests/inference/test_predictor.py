"""Tests of the Python API: its results equal the server's for every task."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenfold
from tests.service.standin import Remote, bundle, picture, serving, settings
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import pair_bundle
from tokenfold.bundle.bundle import BundleError
from tokenfold.inference.errors import (
    ImageFormat,
    InvalidRequest,
    NoProfile,
    TwoSelectors,
    UnknownLevel,
)
from tokenfold.inference.predictor import Predictor
from tokenfold.runtime.cuda import session
from tokenfold.runtime.graph import Device
from tokenfold.service.app import create_app

RED, BLUE, LIME = picture("red"), picture("blue"), picture("lime")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bundles")
    # With real work, so that measured durations of levels follow their FLOPs as the API assumes.
    bundle(folder / "colours", work=20)
    pair_bundle(folder / "pairs", name="pairs")
    dual_bundle(folder / "dual", name="dual")
    return folder


@pytest.fixture(scope="module")
def remote(root: Path) -> Iterator[Remote]:
    with serving(create_app(settings(root))) as client:
        yield client


@pytest.fixture(scope="module")
def colours(root: Path) -> Iterator[Predictor]:
    with tokenfold.open(root / "colours") as model:
        yield model


@pytest.fixture(scope="module")
def pairs(root: Path) -> Iterator[Predictor]:
    with tokenfold.open(str(root / "pairs")) as model:
        yield model


@pytest.fixture(scope="module")
def dual(root: Path) -> Iterator[Predictor]:
    with tokenfold.open(root / "dual") as model:
        yield model


def served(remote: Remote, task: str, **fields: Any) -> Any:
    """Return the results of the server for a request in JSON."""
    images = fields.pop("images", ())
    if images:
        fields["image"] = [base64.b64encode(image).decode() for image in images]
    response = remote.post(f"/v1/{task}", json=fields)
    assert response.status_code == 200, response.text
    return [untimed(result) for result in response.json()["results"]]


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as JSON has it, without the fields that differ between runs."""
    assert set(result["timings_ms"]) == {"decode", "queue", "infer", "post"}
    plain = {key: value for key, value in result.items() if key not in ("timings_ms", "batch_size")}
    if "grid" in plain:
        plain["grid"] = list(plain["grid"])
    return plain


@pytest.mark.parametrize(
    "options",
    [{}, {"level": "fast"}, {"reduction": 0.45}, {"min_accuracy": 0.88}, {"top_k": 2}],
)
def test_classification_equals_the_servers(
    options: dict[str, Any], colours: Predictor, remote: Remote
) -> None:
    results = colours.classify([RED, BLUE, LIME], **options)
    expected = served(remote, "classify", images=[RED, BLUE, LIME], model="colours", **options)
    assert [untimed(result) for result in results] == expected
    assert results[0]["predictions"][0]["label"] == "red"


def test_slots_equal_the_servers(colours: Predictor, remote: Remote) -> None:
    (result,) = colours.classify(RED, level="fast", slots=True)
    expected = served(
        remote, "classify", images=[RED], model="colours", level="fast", include=["slots"]
    )
    assert [untimed(result)] == expected
    assert len(result["slots"]) > 0


def test_zero_shot_equals_the_servers(dual: Predictor, remote: Remote) -> None:
    labels = ["blue circle", "red star"]
    results = dual.classify(RED, labels=labels, template="a {}")
    expected = served(
        remote, "classify", images=[RED], model="dual", labels=labels, template="a {}"
    )
    assert [untimed(result) for result in results] == expected


def test_embeddings_equal_the_servers(dual: Predictor, remote: Remote) -> None:
    results = dual.embed(images=[RED, BLUE], reduction=0.4)
    expected = served(remote, "embed", images=[RED, BLUE], model="dual", reduction=0.4)
    assert [untimed(result) for result in results] == expected
    results = dual.embed(texts=["a red star", "blue"])
    expected = served(remote, "embed", text=["a red star", "blue"], model="dual")
    for result, reference in zip(results, expected, strict=True):
        assert result["vector"] == pytest.approx(reference["vector"], abs=1e-6)
        assert result["text"] == reference["text"]


@pytest.mark.parametrize("slots", [False, True])
def test_answers_equal_the_servers(slots: bool, pairs: Predictor, remote: Remote) -> None:
    questions = ["red", "is it blue", "lime"]
    results = pairs.answer(RED, questions, level="fast", slots=slots)
    include = ["slots"] if slots else []
    expected = served(
        remote, "vqa", images=[RED], question=questions, level="fast", include=include
    )
    assert [_plain(untimed(result)) for result in results] == expected


def test_entailment_and_reasoning_equal_the_servers(pairs: Predictor, remote: Remote) -> None:
    results = pairs.entail([RED, BLUE], ["red", "blue"])
    expected = served(remote, "entail", images=[RED, BLUE], hypothesis=["red", "blue"])
    assert [_plain(untimed(result)) for result in results] == expected
    results = pairs.reason((RED, BLUE), "red")
    expected = served(remote, "reason", images=[RED, BLUE], statement="red")
    assert [_plain(untimed(result)) for result in results] == expected
    # Several pairs may be a list or a tuple.
    for several in ([(RED, BLUE), (BLUE, BLUE)], ((RED, BLUE), (BLUE, BLUE))):
        results = pairs.reason(several, "red")
        expected = served(remote, "reason", images=[RED, BLUE, BLUE, BLUE], statement="red")
        assert [_plain(untimed(result)) for result in results] == expected


def test_matches_equal_the_servers(pairs: Predictor, remote: Remote) -> None:
    results = pairs.match([RED, BLUE], ["red", "blue", "lime"], reduction=0.3)
    expected = served(
        remote, "match", images=[RED, BLUE], text=["red", "blue", "lime"], reduction=0.3
    )
    assert [_plain(untimed(result)) for result in results] == expected
    assert [len(result["scores"]) for result in results] == [3, 3]


def _plain(value: Any) -> Any:
    """Return a value with lists in the place of tuples, as in JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_an_image_may_be_a_path_bytes_a_pillow_image_or_an_array(
    colours: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(RED)
    pixels = Image.open(io.BytesIO(RED)).convert("RGB")
    (expected,) = colours.classify(RED)
    for image in (path, str(path), pixels, np.asarray(pixels), pixels.convert("CMYK")):
        (result,) = colours.classify(image)
        assert result["predictions"] == expected["predictions"]


def test_the_orientation_of_a_pillow_image_is_applied(colours: Predictor) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 40, 12))
    image.getexif()[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=image.getexif(), quality=95)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        results = colours.classify([file.getvalue(), opened])
    assert results[0]["predictions"] == results[1]["predictions"]


def test_many_images_keep_their_order(colours: Predictor) -> None:
    results = colours.classify([RED, BLUE, LIME] * 30)
    labels = [result["predictions"][0]["label"] for result in results]
    assert labels == ["red", "blue", "green"] * 30


def test_error_messages_name_what_is_allowed(
    colours: Predictor, pairs: Predictor, dual: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(UnknownLevel, match="balanced"):
        colours.classify(RED, level="turbo")
    with pytest.raises(TwoSelectors):
        colours.classify(RED, level="fast", reduction=0.5)
    with pytest.raises(InvalidRequest, match="no task 'embed'"):
        colours.embed(images=RED)
    with pytest.raises(InvalidRequest, match="no task 'classify'"):
        pairs.classify(RED)
    with pytest.raises(InvalidRequest, match="at least one image"):
        colours.classify([])
    with pytest.raises(InvalidRequest, match="either images or texts"):
        dual.embed()
    with pytest.raises(InvalidRequest, match="Text 1 is empty"):
        pairs.answer(RED, ["red", " "])
    with pytest.raises(InvalidRequest, match="2 of image and 3 of text"):
        pairs.answer([RED, BLUE], ["red", "blue", "lime"])
    with pytest.raises(InvalidRequest, match="top_k is 0"):
        colours.classify(RED, top_k=0)
    with pytest.raises(InvalidRequest, match=r"reduction.*1\.5|1\.5"):
        colours.classify(RED, reduction=1.5)
    with pytest.raises(ImageFormat):
        colours.classify([RED, b"none"])
    with pytest.raises(FileNotFoundError):
        colours.classify(tmp_path / "missing.jpg")
    unmeasured = bundle(tmp_path / "unmeasured", profile=False)
    with tokenfold.open(unmeasured) as model, pytest.raises(NoProfile):
        model.classify(RED, min_accuracy=0.5)
    with pytest.raises(BundleError):
        tokenfold.open(tmp_path / "missing")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_available_is_an_error(device: Device, root: Path) -> None:
    if session.missing() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match=f"device '{device}' is not available: "):
        tokenfold.open(root / "colours", device=device)
