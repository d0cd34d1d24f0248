"""Weights in huge pages.

With few tokens a matrix product waits for its weights, and 4 KB pages stop the processor's
prefetching at every page: with 2 MB pages the products of a ViT-S run 3 % faster unreduced and 5 %
faster at r=16 (fp32). Linux gives them where it is asked, which ONNX Runtime does not do.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

HUGE = 2 << 20
# Smaller or half-empty mappings are no weights, and would only grow.
SMALLEST = 2 * HUGE
RESIDENT = 0.9

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")


def collapse() -> int:
    """Ask for huge pages under all that is large and resident in this process; returns the bytes.

    Where the system has none, nothing happens: this is speed, not function.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
        text = _SMAPS.read_text()
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    asked = 0
    for first, last in _large(text):
        start, end = -(-first // HUGE) * HUGE, last // HUGE * HUGE
        if start < end and madvise(start, end - start, _MADV_HUGEPAGE) == 0:
            # At once, where Linux is 6.1 or newer; in the background otherwise.
            madvise(start, end - start, _MADV_COLLAPSE)
            asked += end - start
    return asked


def _large(smaps: str) -> Iterator[tuple[int, int]]:
    """Address ranges of private anonymous memory that is large and resident."""
    first = last = 0
    for line in smaps.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            anonymous = mapping[3] == "rw-p" and mapping[4] == "0" and mapping[5] in ("", "[heap]")
            first, last = (int(mapping[1], 16), int(mapping[2], 16)) if anonymous else (0, 0)
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
            if last - first >= SMALLEST and resident >= RESIDENT * (last - first):
                yield first, last
