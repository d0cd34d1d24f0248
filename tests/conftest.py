"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# Examples are counted, not timed: a loaded machine is no failure.
settings.register_profile("tokenfold", deadline=None, max_examples=100)
settings.load_profile("tokenfold")
