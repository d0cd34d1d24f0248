"""Tests of the catalog: the model of a task, and the patch grid of its images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.standin import bundle
from tests.service.standin_pairs import BOUNDED, WORKLOAD, pair_bundle
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.manifest import Level, Manifest
from tokenfold.bundle.meter_workload import MeterWorkload, even_widths
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.service.errors import UnknownModel
from tokenfold.service.scheduling.catalog import Catalog, ServedModel


def meter(patches: int, tower: int) -> MeterWorkload:
    widths = tuple(even_widths(1 + patches, tower, 12))
    return MeterWorkload(
        method="none", text=50, most_text=50, image=widths[-1], depth=6, form="sequential",
        dim=32, mlp_dim=64, metric_dim=16, vision_widths=widths, text_depth=12, stem=100, head=10,
    )  # fmt: skip


def model(root: Path, workload: PairWorkload, preprocess: Preprocess) -> ServedModel:
    """Return the stand-in model with another workload and pre-processing."""
    manifest = Bundle.open(pair_bundle(root)).manifest
    level = Level(
        reduction=0.0,
        plan=workload.unreduced,
        flops_ratio=1.0,
        tokens_out=workload.widths(workload.unreduced)[-1],
    )
    fields = {
        "workload": workload,
        "preprocess": preprocess,
        "levels": {"exact": level},
        "default_level": "exact",
    }
    checked = Manifest.model_validate(manifest.model_copy(update=fields).model_dump())
    return ServedModel(Bundle(root, checked, None))


def test_the_grid_follows_the_shape_of_the_image(tmp_path: Path) -> None:
    served = model(tmp_path / "a", WORKLOAD, BOUNDED)
    assert served.grid == (4, 4)
    assert served.grid_of((16, 32)) == (4, 8)
    assert served.image_tokens((16, 32)) == 33
    assert served.image_tokens((28, 16)) == 29
    assert served.protected == 1


def test_the_grid_of_a_wide_nominal_size(tmp_path: Path) -> None:
    wide = WORKLOAD.sized(image=1 + 12 * 18)
    served = model(tmp_path / "a", wide, Preprocess(size=(384, 576)))
    assert served.grid == (12, 18)


def test_the_grid_of_an_image_tower_that_merges_patches(tmp_path: Path) -> None:
    whole = model(tmp_path / "a", meter(324, 0), Preprocess(size=(288, 288)))
    assert whole.grid == (18, 18)
    assert whole.image_tokens((288, 288)) == 325
    merged = model(tmp_path / "b", meter(324, 16), Preprocess(size=(288, 288)))
    assert merged.grid == (18, 18)
    assert merged.image_tokens((288, 288)) == 325 - 12 * 16


def test_the_default_model_of_a_task_is_the_first_or_the_configured_one(tmp_path: Path) -> None:
    bundle(tmp_path / "a")
    pair_bundle(tmp_path / "b", name="first", tasks=["vqa"])
    pair_bundle(tmp_path / "c", name="second", tasks=["vqa", "match"])
    tasks: tuple[PairTask, ...] = ("vqa", "match")
    catalog = Catalog.open(tmp_path)
    assert [catalog.find(None, task).name for task in tasks] == ["first", "second"]
    catalog = Catalog.open(tmp_path, default="second")
    assert [catalog.find(None, task).name for task in tasks] == ["second", "second"]
    assert catalog.find(None, "classify").name == "colours"
    with pytest.raises(UnknownModel, match="no model for reason"):
        catalog.find(None, "reason")
    with pytest.raises(UnknownModel, match="second"):
        catalog.find("first", "match")


def test_a_damaged_tokenizer_is_a_bundle_error(tmp_path: Path) -> None:
    root = pair_bundle(tmp_path / "a")
    served = ServedModel(Bundle.open(root))
    (root / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        served.load(lambda _: None)  # type: ignore[arg-type, return-value]
