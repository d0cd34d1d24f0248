"""Filters select the right images, and nothing in them is executed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.galleries.made import image, info
from tokenfold.service.errors import InvalidFilter
from tokenfold.service.galleries.filters import MAX_CONDITIONS, MAX_VALUES, where
from tokenfold.service.galleries.store import Galleries
from tokenfold.service.galleries.table import Gallery

NASTY = "it's \"q\" \\ é😀\n-- '; DROP"
METADATA: dict[str, dict[str, Any]] = {
    "whole": {"year": 2020},
    "double": {"year": 2020.0, "f": 1.5},
    "half": {"year": 2020.5},
    "negative": {"year": -1},
    "huge": {"year": 2**63},
    "huger": {"year": 2**63 + 1},
    "tiny": {"year": 1e-300},
    "text": {"year": "2020"},
    "word": {"year": "abc", "tag": "sea"},
    "words": {"year": "abc d", "tag": "sun"},
    "quote": {"year": 'ab"', "tag": NASTY},
    "empty text": {"year": ""},
    "true": {"year": True},
    "null": {"year": None},
    "list": {"year": [2020, "abc", None, True, NASTY, "7"]},
    "object": {"year": {"model": "X100", "deep": {"er": 1}}},
    "none": {},
    "odd": {"": 1, NASTY: 2, "$": 3, "*": "x", "a b": 4},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Gallery]]:
    async def fill(place: Path) -> tuple[Galleries, Gallery]:
        galleries = await Galleries.open(str(place))
        gallery = await galleries.create(info())
        await gallery.put([image(id, metadata=metadata) for id, metadata in METADATA.items()])
        return galleries, gallery

    with asyncio.Runner() as runner:
        galleries, gallery = runner.run(fill(tmp_path_factory.mktemp("data")))
        yield runner, gallery
        runner.run(galleries.close())


def matching_ids(stored: tuple[asyncio.Runner, Gallery], filter: dict[str, Any]) -> set[str]:
    runner, gallery = stored
    hits = runner.run(gallery.page(None, 1000, filter))
    assert runner.run(gallery.count(filter)) == len(hits)
    return {hit.id for hit in hits}


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, set(METADATA)),
        ({"year": 2020}, {"whole", "double"}),
        ({"year": 2020.0}, {"whole", "double"}),
        ({"year": "2020"}, {"text"}),
        ({"year": True}, {"true"}),
        ({"year": None}, {"null"}),
        ({"year": ""}, {"empty text"}),
        ({"year": 2**63}, {"huge"}),
        ({"year": {"eq": 1e-300}}, {"tiny"}),
        ({"tag": NASTY}, {"quote"}),
        ({NASTY: 2}, {"odd"}),
        ({"": 1, "$": 3, "*": "x", "a b": 4}, {"odd"}),
        ({"year": {"gte": 2020, "lt": 2021}}, {"whole", "double", "half"}),
        ({"year": {"lt": 0}}, {"negative"}),
        ({"year": {"gt": 2020.5}}, {"huge", "huger"}),
        ({"year": {"lte": 2020}, "f": {"gt": 1}}, {"double"}),
        ({"year": {"gte": "abc"}}, {"word", "words"}),
        ({"year": {"gt": "abc"}}, {"words"}),
        ({"year": {"lt": "abc"}}, {"text", "quote", "empty text"}),
        ({"year": {"in": [2020, "abc", None]}}, {"whole", "double", "word", "null"}),
        ({"tag": {"in": ["sea", NASTY]}}, {"word", "quote"}),
        ({"tag": {"ne": "sea"}}, set(METADATA) - {"word"}),
        ({"year": {"ne": 2020}}, set(METADATA) - {"whole", "double"}),
        ({"tag": {"exists": True}}, {"word", "words", "quote"}),
        ({"year": {"exists": False}}, {"none", "odd"}),
        ({"year": {"contains": "abc"}}, {"list"}),
        ({"year": {"contains": 2020}}, {"list"}),
        ({"year": {"contains": NASTY}}, {"list"}),
        ({"year": {"contains": 7}}, {"list"}),
        ({"year": {"contains": "7"}}, {"list"}),
        ({"year": {"contains": None}}, {"list"}),
        ({"year": {"contains": "bc"}}, set()),
        ({"year.model": "X100"}, {"object"}),
        ({"year.deep.er": {"gte": 1}}, {"object"}),
        ({"year.no": "X100"}, set()),
    ],
)
def test_filters_select_matching_images(
    stored: tuple[asyncio.Runner, Gallery], filter: dict[str, Any], expected: set[str]
) -> None:
    assert matching_ids(stored, filter) == expected


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["'", '"', "\\", "' OR 1=1 --", "%", "_", "\x00", "{}", "$"])
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["'", "year", "tag", "year.model", "') OR (1=1", '"', "..", "a\x00b"]
)


@settings(max_examples=60)
@given(
    st.dictionaries(
        KEYS,
        SCALARS
        | st.fixed_dictionaries({"eq": SCALARS})
        | st.fixed_dictionaries({"in": st.lists(SCALARS, min_size=1, max_size=3)}),
        min_size=1,
        max_size=3,
    )
)
def test_nothing_in_a_filter_is_executed(
    stored: tuple[asyncio.Runner, Gallery], filter: dict[str, Any]
) -> None:
    def holds(metadata: Any, key: str, requirement: Any) -> bool:
        for name in key.split("."):
            if not isinstance(metadata, dict) or name not in metadata:
                return False
            metadata = metadata[name]
        values = (
            requirement.get("in", [requirement.get("eq")])
            if isinstance(requirement, dict)
            else [requirement]
        )

        def kind(value: Any) -> type:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return float if number else type(value)

        return any(kind(metadata) is kind(value) and metadata == value for value in values)

    expected = {
        id
        for id, metadata in METADATA.items()
        if all(holds(metadata, key, requirement) for key, requirement in filter.items())
    }
    assert matching_ids(stored, filter) == expected


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"year": {}}, "has no operator"),
        ({"year": {"above": 1}}, "no operator 'above'; known: eq, ne"),
        ({"year": [1]}, "a value must be a text"),
        ({"year": {"eq": {"a": 1}}}, "a value must be a text"),
        ({"year": {"in": []}}, "1 to 1000"),
        ({"year": {"in": "abc"}}, "1 to 1000"),
        ({"year": {"in": [1] * (MAX_VALUES + 1)}}, "1 to 1000"),
        ({"year": {"exists": 1}}, "true or false"),
        ({"a": {"in": [1] * 600}, "b": {"in": ["x"] * 600}}, "1200 values"),
        ({"year": {"gte": True}}, "only numbers and texts"),
        ({"year": {"gte": None}}, "only numbers and texts"),
        ({"year": {"gte": 10**400}}, "out of range"),
        ({"year": {"gte": float("nan")}}, "out of range"),
        ({"year": float("inf")}, "out of range"),
        ({"year": "\ud800"}, "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({"year": "x" * 5000}, "longer than"),
        ({"a.b" * 20: 1}, "too deeply"),
        ({str(n): 1 for n in range(MAX_CONDITIONS + 1)}, "33 conditions"),
    ],
)
def test_invalid_filters_are_refused(filter: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFilter, match=message):
        where(filter)


def test_a_long_list_needs_one_lookup_per_type(stored: tuple[asyncio.Runner, Gallery]) -> None:
    values: list[Any] = ["abc", 2020, None, True, *(f"v{n}" for n in range(MAX_VALUES - 4))]
    condition = where({"year": {"in": values}})
    assert condition is not None
    assert condition.count("json_get") == 2  # one for the numbers, one for the other values
    assert matching_ids(stored, {"year": {"in": values}}) == {
        "whole",
        "double",
        "word",
        "null",
        "true",
    }
    assert matching_ids(stored, {"year": {"in": [*range(2019, 3019)]}}) == {"whole", "double"}
