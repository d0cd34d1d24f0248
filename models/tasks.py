"""What a network can be asked. No torch in here."""

from __future__ import annotations

from typing import Literal

Task = Literal["classify", "vqa", "entail", "reason", "match"]
PairTask = Literal["vqa", "entail", "reason", "match"]
"""Tasks on an image and a text; `reason` takes two images."""
