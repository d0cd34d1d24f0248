"""What a network can be asked. No torch in here."""

from __future__ import annotations

from typing import Literal

Task = Literal["classify", "embed", "vqa", "entail", "reason", "match"]
"""`embed` makes a vector of an image or of a text."""
PairTask = Literal["vqa", "entail", "reason", "match"]
"""Tasks on an image and a text; `reason` takes two images."""
