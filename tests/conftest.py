"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Read when torch is imported: on networks this small its threads wait for each other three times
# as long as they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples are counted, not timed: a loaded machine is no failure.
settings.register_profile("tokenfold", deadline=None, max_examples=100)
settings.load_profile("tokenfold")
