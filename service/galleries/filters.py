"""Filters on the metadata of images, translated to LanceDB's SQL.

A filter is a JSON object, whose entries must all hold:

    {"album": "2024", "year": {"gte": 2020, "lt": 2024}, "tag": {"in": ["sea", "sun"]},
     "colours": {"contains": "red"}, "camera.model": {"ne": "X100"}, "note": {"exists": false}}

A dot in a name addresses a member of an object. A missing value equals nothing, and is unequal to
everything. Numbers compare with numbers, and texts with texts by code point; other types have no
order. "contains" looks for an element of a list by its text, so 7 also matches "7".
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
MAX_CONDITIONS = 32  # per filter
MAX_VALUES = 1000  # in all "in" lists of a filter together
MAX_VALUE_LENGTH = 4096  # characters of a value, as JSON
MAX_DEPTH = 16  # names joined by dots
_MAX_EXACT_INTEGER = 2**53  # a double holds all integers up to this one


def where(filter: Mapping[str, Any]) -> str | None:
    """Translate a filter to an SQL condition; None if it accepts all images.

    Raises:
        InvalidFilter: the filter does not have the form above.
    """
    conditions = [
        condition for key, requirement in filter.items() for condition in _entry(key, requirement)
    ]
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidFilter(
            f"The filter has {len(conditions)} conditions; at most {MAX_CONDITIONS} are allowed."
        )
    values = sum(
        len(requirement.get("in", ()))
        for requirement in filter.values()
        if isinstance(requirement, Mapping)
    )
    if values > MAX_VALUES:
        raise InvalidFilter(
            f"The filter has {values} values in its lists; at most {MAX_VALUES} are allowed."
        )
    return " AND ".join(f"({condition})" for condition in conditions) or None


def quoted(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _entry(key: str, requirement: Any) -> list[str]:
    field = _field(key)
    if not isinstance(requirement, Mapping):
        return [_equal(key, field, requirement)]
    if not requirement:
        raise InvalidFilter(f"{_label(key)} has no operator; known: {', '.join(_OPERATORS)}.")
    conditions = []
    for name, value in requirement.items():
        operator = _OPERATORS.get(name)
        if operator is None:
            raise InvalidFilter(
                f"{_label(key)} has no operator '{shortened(str(name))}'; "
                f"known: {', '.join(_OPERATORS)}."
            )
        conditions.append(operator(key, field, value))
    return conditions


def _field(key: str) -> str:
    """Return an SQL expression of the metadata that `key` names, as JSONB; NULL if missing."""
    names = key.split(".")
    if len(names) > MAX_DEPTH or len(key) > MAX_VALUE_LENGTH:
        raise InvalidFilter(f"{_label(key)} is too long or nested too deeply for a metadata name.")
    field = COLUMN
    for name in names:
        field = f"json_get({field}, {quoted(_check_text(key, name))})"
    return field


def _equal(key: str, field: str, value: Any) -> str:
    return _within(key, field, [value])


def _unequal(key: str, field: str, value: Any) -> str:
    return f"NOT coalesce({_equal(key, field, value)}, false)"


def _within(key: str, field: str, value: Any) -> str:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_VALUES:
        raise InvalidFilter(f"{_label(key)}: 'in' takes a list of 1 to {MAX_VALUES} values.")
    # 2020, 2020.0 and 2.02e3 are the same number, but different texts.
    numbers = [_double(key, item) for item in value if _is_exact(item)]
    texts = [quoted(_literal(key, item)) for item in value if not _is_exact(item)]
    # One lookup for all values, because the lookup takes most of the time.
    return " OR ".join(
        f"{expression} IN ({', '.join(literals)})"
        for expression, literals in ((_number(field), numbers), (_text(field), texts))
        if literals
    )


def _exists(key: str, field: str, value: Any) -> str:
    if not isinstance(value, bool):
        raise InvalidFilter(f"{_label(key)}: 'exists' must be true or false.")
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
            # Without the closing quote, which would compare as a character of the text.
            return (
                f"{text} LIKE '\"%' AND rtrim({text}, '\"') {sign} {quoted(bound.rstrip(chr(34)))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidFilter(f"{_label(key)}: only numbers and texts can be ordered.")
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
    """Whether a value is a number that a double represents exactly."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= _MAX_EXACT_INTEGER
    )


def _text(field: str) -> str:
    """Return an SQL expression of a field's JSON text; NULL if the field is missing."""
    return f"json_extract({field}, '$')"


def _number(field: str) -> str:
    """Return an SQL expression of a number; NULL for other types: quoted texts do not cast."""
    return f"TRY_CAST({_text(field)} AS DOUBLE)"


def _double(key: str, value: float) -> str:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidFilter(f"{_label(key)}: {shortened(str(value))} is out of range.")
    return f"CAST({quoted(repr(number))} AS DOUBLE)"


def _literal(key: str, value: Any) -> str:
    """Return a value as the JSON text that LanceDB makes of it."""
    if isinstance(value, Mapping | list | tuple):
        raise InvalidFilter(f"{_label(key)}: a value must be a text, number, true, false or null.")
    if isinstance(value, float):
        _double(key, value)
    if isinstance(value, str):
        _check_text(key, value)
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_VALUE_LENGTH:
        raise InvalidFilter(
            f"{_label(key)}: the value is longer than {MAX_VALUE_LENGTH} characters."
        )
    return text


def _check_text(key: str, text: str) -> str:
    if not is_text(text):
        raise InvalidFilter(f"{_label(key)}: a text contains half a surrogate pair.")
    return text


def _label(key: str) -> str:
    return f"filter '{shortened(key)}'"
