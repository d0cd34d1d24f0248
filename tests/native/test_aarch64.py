"""The op library for 64-bit ARM passes the tests of the ops in ONNX Runtime for 64-bit ARM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.emulated import session

TOP = Path(__file__).parents[2]
FOLDER = TOP / "build" / "aarch64"

pytestmark = [
    pytest.mark.more,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(session.missing() is not None, reason=str(session.missing())),
]


def test_the_ops_agree_on_aarch64() -> None:
    subprocess.run(["make", "plugins-aarch64"], cwd=TOP, check=True)
    header = (FOLDER / "libtokenfold_ort.so").read_bytes()[:20]
    assert header[18:20] == b"\xb7\x00", "ELF machine is EM_AARCH64"
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "not portable"]
    tests = [TOP / "tests" / "native" / name for name in ("test_ops.py", "test_pumer_ops.py")]
    done = subprocess.run(
        [*arguments, *tests],
        cwd=TOP,
        env={**os.environ, session.VARIABLE: str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
