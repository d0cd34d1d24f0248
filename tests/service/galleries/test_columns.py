"""Conversion of images to table rows, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.galleries.made import WIDTH, assert_same, image, info, vectors
from tokenfold.inference.errors import InvalidRequest
from tokenfold.service.galleries import columns
from tokenfold.service.galleries.record import ImageRow

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(
    st.builds(
        ImageRow,
        id=TEXT,
        vector=st.integers(0, 1000).map(lambda seed: vectors(1, WIDTH, seed)[0]),
        sha256=st.just("0" * 64),
        metadata=st.dictionaries(TEXT, JSON, max_size=4),
        width=st.integers(1, 2**31 - 1),
        height=st.integers(1, 2**31 - 1),
        added=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)),
        thumbnail=st.binary(max_size=100),
    )
)
def test_round_trip(row: ImageRow) -> None:
    table = columns.table([row], info())
    assert_same(columns.image_row(table.to_pylist()[0]), row)
    (hit,) = columns.hits(table, [0.5])
    assert hit == (*(row.id, 0.5, row.metadata, row.width, row.height, row.added, row.sha256),)


def test_scores_are_cosines() -> None:
    cosines = columns.cosines(np.array([-1e-7, 0.0, 0.25, 2.0000002], np.float32))
    np.testing.assert_array_equal(cosines, [1.0, 1.0, 0.75, -1.0])
    (hit,) = columns.hits(columns.table([image("a")], info()))
    assert np.isnan(hit.score)


def test_a_schema_holds_the_gallery_or_a_mark() -> None:
    assert columns.description(columns.schema(info())) == info()
    assert columns.marked(columns.schema(info()), columns.DELETED) is None
    assert columns.description(columns.mark(columns.DELETED)) is None
    assert columns.marked(columns.mark(columns.DELETED), columns.PENDING) is None
    age = columns.marked(columns.mark(columns.DELETED), columns.DELETED)
    assert age is not None
    assert 0.0 <= age < 60.0
    assert columns.description(pa.schema([])) is None
    assert columns.description(pa.schema([], metadata={"tokenfold": "{}"})) is None


def test_a_marked_table_has_no_column_of_a_gallery() -> None:
    assert not set(columns.schema(info()).names) & set(columns.mark(columns.DELETED).names)


@given(JSON)
def test_equal_metadata_has_equal_text(value: Any) -> None:
    text = columns.metadata_text({"a": value, "b": 1})
    assert columns.metadata_text({"b": 1, "a": value}) == text
    assert json.loads(text) == {"a": value, "b": 1}


def nested(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": 2**64}, "64 bits"),
        ({"a": [{"b": -(2**63) - 1}]}, "64 bits"),
        ({"a": float("nan")}, "Out of range"),
        ({"a": float("-inf")}, "Out of range"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({1: 1}, "not a text"),
        ({"a": b"x"}, "not JSON serializable"),
        ({"a": nested(100_000)}, "metadata"),
    ],
)
def test_invalid_metadata_is_refused(metadata: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        columns.metadata_text(metadata)


def test_a_vector_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(9,\), not \(8,\)"):
        columns.table([image("a", width=9)], info())
