"""Tests of a bundle's model: its tokenizer, its labels and its patch grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.standin import LABELS, SIDE, bundle
from tests.service.standin_pairs import BOUNDED, TASKS, pair_bundle
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.inference.errors import UnknownLevel
from tokenfold.inference.model import Model


def test_a_model_has_the_name_labels_and_default_level_of_its_bundle(tmp_path: Path) -> None:
    model = Model(Bundle.open(bundle(tmp_path / "a")))
    assert model.name == "colours"
    assert model.labels("classify") == LABELS
    assert model.levels.default == "exact"
    assert model.weights == (tmp_path / "a" / "model.onnx").stat().st_size


def test_an_unknown_default_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownLevel, match="'turbo'"):
        Model(Bundle.open(bundle(tmp_path / "a")), default_level="turbo")


def test_the_tokenizer_is_available_once_it_is_open(tmp_path: Path) -> None:
    model = Model(Bundle.open(pair_bundle(tmp_path / "a")))
    with pytest.raises(RuntimeError, match="not loaded"):
        _ = model.text
    model.open_text()
    assert len(model.text.encode("red").ids) == 3


def test_a_model_without_texts_has_no_tokenizer(tmp_path: Path) -> None:
    model = Model(Bundle.open(bundle(tmp_path / "a")))
    model.open_text()
    with pytest.raises(RuntimeError, match="takes no texts"):
        _ = model.text


def test_a_damaged_tokenizer_is_a_bundle_error(tmp_path: Path) -> None:
    model = Model(Bundle.open(pair_bundle(tmp_path / "a")))
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        model.open_text()


def test_the_grid_of_an_image_follows_its_shape(tmp_path: Path) -> None:
    model = Model(Bundle.open(pair_bundle(tmp_path / "a", preprocess=BOUNDED)))
    assert model.grid == model.grid_of((SIDE, SIDE)) == (4, 4)
    assert model.grid_of((SIDE, 2 * SIDE)) == (4, 8)
    assert model.image_tokens((SIDE, 2 * SIDE)) == model.protected + 32
    assert set(model.tasks) == set(TASKS)
