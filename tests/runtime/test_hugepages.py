"""Huge pages: requested only for large resident memory, and optional."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from tokenfold.runtime import hugepages

SMAPS = """\
7f0000000000-7f0000c00000 rw-p 00000000 00:00 0
Size:              12288 kB
Rss:               12288 kB
7f1000000000-7f1000c00000 rw-p 00000000 00:00 0
Rss:                 100 kB
7f2000000000-7f2000c00000 rw-p 00000000 08:01 42                         /a/file
Rss:               12288 kB
7f3000000000-7f3000c00000 r--p 00000000 00:00 0
Rss:               12288 kB
7f4000000000-7f4000c00000 rw-p 00000000 00:00 0                          [stack]
Rss:               12288 kB
7f5000000000-7f5000100000 rw-p 00000000 00:00 0
Rss:                1024 kB
555500000000-555500c00000 rw-p 00000000 00:00 0                          [heap]
Rss:               12288 kB
"""


def test_large_anonymous_resident_mappings_are_selected() -> None:
    assert [first for first, _ in hugepages._large(SMAPS)] == [0x7F0000000000, 0x555500000000]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_memory_keeps_its_content() -> None:
    with mmap.mmap(-1, 16 << 20) as memory:
        memory[:] = bytes(range(256)) * (len(memory) // 256)
        hugepages.collapse()
        assert memory[:] == bytes(range(256)) * (len(memory) // 256)


def test_a_system_without_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "_SMAPS", Path("/nonexistent"))
    assert hugepages.collapse() == 0
