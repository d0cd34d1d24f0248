"""Tasks of the networks."""

from __future__ import annotations

from typing import Literal

Task = Literal["classify", "embed", "vqa", "entail", "reason", "match"]
"""All tasks; `embed` makes a vector of an image or a text."""
PairTask = Literal["vqa", "entail", "reason", "match"]
"""Tasks that take an image and a text; `reason` takes two images."""
