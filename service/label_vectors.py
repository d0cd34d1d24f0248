"""The vectors of labels that were asked for lately: most requests to classify name the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from tokenfold.service.vectors import Vector

# Of 512 numbers each, 16 MB.
_MOST = 8192


class LabelVectors:
    """Vectors by model and text, of which those that were used longest ago go first.

    One thread uses it: the event loop's.
    """

    def __init__(self, most: int = _MOST) -> None:
        """Args:
        most: vectors of all models together.
        """
        self._most = most
        self._found: OrderedDict[tuple[str, str], Vector] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, model: str, texts: Iterable[str]) -> dict[str, Vector]:
        """Those that are known."""
        found = {}
        for text in texts:
            key = (model, text)
            if key in self._found:
                self._found.move_to_end(key)
                found[text] = self._found[key]
        return found

    def keep(self, model: str, vectors: Mapping[str, Vector]) -> None:
        """Remember vectors by their texts."""
        for text, vector in vectors.items():
            # A row of a batch would keep the whole batch in memory.
            self._found[model, text] = vector.copy()
            self._found.move_to_end((model, text))
        while len(self._found) > self._most:
            self._found.popitem(last=False)
