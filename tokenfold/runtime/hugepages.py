"""Huge pages for the weights.

With few tokens, matrix products are limited by loading the weights, and the processor's prefetching
stops at the end of each 4 KB page. With 2 MB pages the products of a ViT-S are 3 % faster unreduced
and 5 % faster at r=16 (fp32). Linux provides them on request; ONNX Runtime does not ask.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

HUGE = 2 << 20
# Smaller or partly empty mappings are not weights, and huge pages would only enlarge them.
MIN_SIZE = 2 * HUGE
MIN_RESIDENT = 0.9

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")


def collapse() -> int:
    """Request huge pages for the large resident mappings of this process; return their bytes.

    Does nothing on a system without huge pages, because only speed depends on them.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
        text = _SMAPS.read_text()
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    requested = 0
    for first, last in _large(text):
        start, end = -(-first // HUGE) * HUGE, last // HUGE * HUGE
        if start < end and madvise(start, end - start, _MADV_HUGEPAGE) == 0:
            # Takes effect at once on Linux 6.1 or newer; otherwise the kernel does it later.
            madvise(start, end - start, _MADV_COLLAPSE)
            requested += end - start
    return requested


def _large(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield the address ranges of private anonymous memory that is large and resident."""
    first = last = 0
    for line in smaps.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            anonymous = mapping[3] == "rw-p" and mapping[4] == "0" and mapping[5] in ("", "[heap]")
            first, last = (int(mapping[1], 16), int(mapping[2], 16)) if anonymous else (0, 0)
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
            if last - first >= MIN_SIZE and resident >= MIN_RESIDENT * (last - first):
                yield first, last
