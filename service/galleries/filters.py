"""Filters on the metadata of images, as the SQL that LanceDB runs.

A filter is a JSON object. Every one of its entries has to hold:

    {"album": "2024", "year": {"gte": 2020, "lt": 2024}, "tag": {"in": ["sea", "sun"]},
     "colours": {"contains": "red"}, "camera.model": {"ne": "X100"}, "note": {"exists": false}}

A dot reaches into an object. What the metadata does not have equals nothing, and is unequal to all.
Numbers compare with numbers and texts with texts, by code point; other kinds have no order.
"contains" looks for an element of a list, told by its text: 7 finds "7" as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from tokenfold.inference.errors import shortened
from tokenfold.service.errors import InvalidFilter
from tokenfold.service.galleries.record import is_text

COLUMN = "metadata"
MOST_CONDITIONS = 32  # of one filter
MOST_VALUES = 1000  # of all "in" of one filter
LONGEST_VALUE = 4096  # characters of a value, as JSON
DEEPEST = 16  # names that dots join
_WHOLE = 2**53  # up to here a double holds every whole number


def where(filter: Mapping[str, Any]) -> str | None:
    """The condition in SQL; None where all images pass.

    Raises:
        InvalidFilter: it is not of the form above.
    """
    conditions = [condition for key, asked in filter.items() for condition in _entry(key, asked)]
    if len(conditions) > MOST_CONDITIONS:
        raise InvalidFilter(
            f"The filter has {len(conditions)} conditions; at most {MOST_CONDITIONS} are allowed."
        )
    values = sum(
        len(asked.get("in", ())) for asked in filter.values() if isinstance(asked, Mapping)
    )
    if values > MOST_VALUES:
        raise InvalidFilter(
            f"The filter has {values} values in its lists; at most {MOST_VALUES} are allowed."
        )
    return " AND ".join(f"({condition})" for condition in conditions) or None


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _entry(key: str, asked: Any) -> list[str]:
    field = _field(key)
    if not isinstance(asked, Mapping):
        return [_equal(key, field, asked)]
    if not asked:
        raise InvalidFilter(f"{_named(key)} names no operator; known: {', '.join(_OPERATORS)}.")
    conditions = []
    for name, value in asked.items():
        operator = _OPERATORS.get(name)
        if operator is None:
            raise InvalidFilter(
                f"{_named(key)} has no operator '{shortened(str(name))}'; "
                f"known: {', '.join(_OPERATORS)}."
            )
        conditions.append(operator(key, field, value))
    return conditions


def _field(key: str) -> str:
    """What `key` names, as JSONB; NULL where there is no such thing."""
    names = key.split(".")
    if len(names) > DEEPEST or len(key) > LONGEST_VALUE:
        raise InvalidFilter(f"{_named(key)} is too long or too deep to be a name in metadata.")
    field = COLUMN
    for name in names:
        field = f"json_get({field}, {quoted(_clean(key, name))})"
    return field


def _equal(key: str, field: str, value: Any) -> str:
    return _within(key, field, [value])


def _unequal(key: str, field: str, value: Any) -> str:
    return f"NOT coalesce({_equal(key, field, value)}, false)"


def _within(key: str, field: str, value: Any) -> str:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_VALUES:
        raise InvalidFilter(f"{_named(key)}: 'in' takes a list of 1 to {MOST_VALUES} values.")
    # 2020, 2020.0 and 2.02e3 are one number, and three texts.
    numbers = [_double(key, each) for each in value if _is_exact(each)]
    texts = [quoted(_literal(key, each)) for each in value if not _is_exact(each)]
    # Looked up once for all values: it takes most of the time.
    return " OR ".join(
        f"{looked_up} IN ({', '.join(listed)})"
        for looked_up, listed in ((_number(field), numbers), (_text(field), texts))
        if listed
    )


def _exists(key: str, field: str, value: Any) -> str:
    if not isinstance(value, bool):
        raise InvalidFilter(f"{_named(key)}: 'exists' is true or false.")
    return f"{field} IS {'NOT ' if value else ''}NULL"


def _contains(key: str, field: str, value: Any) -> str:
    return (
        f"{_text(field)} LIKE '[%' AND "
        f"json_array_contains({field}, '$', {quoted(_literal(key, value))})"
    )


def _ordered(sign: str) -> Callable[[str, str, Any], str]:
    def compare(key: str, field: str, value: Any) -> str:
        if isinstance(value, str):
            text = _text(field)
            bound = _literal(key, value)
            # Without the closing quote, which would count as a character of the text.
            return (
                f"{text} LIKE '\"%' AND rtrim({text}, '\"') {sign} {quoted(bound.rstrip(chr(34)))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidFilter(f"{_named(key)}: only numbers and texts have an order.")
        return f"{_number(field)} {sign} {_double(key, value)}"

    return compare


_OPERATORS: dict[str, Callable[[str, str, Any], str]] = {
    "eq": _equal,
    "ne": _unequal,
    "gt": _ordered(">"),
    "gte": _ordered(">="),
    "lt": _ordered("<"),
    "lte": _ordered("<="),
    "in": _within,
    "contains": _contains,
    "exists": _exists,
}


def _is_exact(value: Any) -> bool:
    """Whether it is a number that a double holds, and not only nearly."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _WHOLE


def _text(field: str) -> str:
    """JSON; NULL where there is no such thing."""
    return f"json_extract({field}, '$')"


def _number(field: str) -> str:
    """NULL where it is no number: a text keeps its quotes, and does not cast."""
    return f"TRY_CAST({_text(field)} AS DOUBLE)"


def _double(key: str, value: float) -> str:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidFilter(f"{_named(key)}: {shortened(str(value))} is out of range.")
    return f"CAST({quoted(repr(number))} AS DOUBLE)"


def _literal(key: str, value: Any) -> str:
    """A value as the JSON text that LanceDB makes of it."""
    if isinstance(value, Mapping | list | tuple):
        raise InvalidFilter(f"{_named(key)}: a value is a text, a number, true, false or null.")
    if isinstance(value, float):
        _double(key, value)
    if isinstance(value, str):
        _clean(key, value)
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > LONGEST_VALUE:
        raise InvalidFilter(f"{_named(key)}: the value is longer than {LONGEST_VALUE} characters.")
    return text


def _clean(key: str, text: str) -> str:
    if not is_text(text):
        raise InvalidFilter(f"{_named(key)}: half a surrogate pair is no text.")
    return text


def _named(key: str) -> str:
    return f"filter '{shortened(key)}'"
