"""The library with the ops for CUDA: it builds for one architecture, and loads without a GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from export.graph import Graph, export
from export.plugins.onnxruntime import library
from export.verify import random_images
from models.reduction.tome import ToMe
from tests import tiny
from tests.cuda_host import registered
from tests.cuda_host.library import TOP

FOLDER = TOP / "build" / "plugins-cuda-test"

pytestmark = [
    pytest.mark.skipif(
        shutil.which("nvcc") is None or shutil.which("cmake") is None,
        reason="found no nvcc and cmake",
    ),
    pytest.mark.skipif(
        library.find() is None, reason="the C++ ops are not built: run `make plugins`"
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def built() -> Path:
    """As `make plugins-cuda CUDA_ARCHITECTURES=90` makes it, elsewhere."""
    options = [
        f"-DORT_INCLUDE_DIR={registered.headers()}",
        "-DTOKENFOLD_WITH_CUDA=ON",
        "-DCMAKE_CUDA_ARCHITECTURES=90",
    ]
    configure = ["-S", str(registered.PLUGINS), "-B", str(FOLDER), *options]
    for arguments in (configure, ["--build", str(FOLDER)]):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
    return FOLDER / "libtokenfold_ort_cuda.so"


def test_it_loads_without_a_driver(built: Path) -> None:
    loaded = ctypes.CDLL(str(built), mode=os.RTLD_NOW)
    assert loaded.RegisterCustomOps
    shown = subprocess.run(["ldd", built], check=True, capture_output=True, text=True).stdout
    assert "libcuda" not in shown


def test_it_keeps_its_kernels_to_itself(built: Path) -> None:
    loaded = ctypes.CDLL(str(built))
    with pytest.raises(AttributeError):
        _ = loaded.tokenfold_cuda_reduce


def test_a_session_on_the_cpu_gives_the_same(built: Path, tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    path = tmp_path / "model.onnx"
    export(Graph(checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True), path)
    feeds = {"image": random_images(tiny.SIZE, 3), "plan": np.array([2, 3, 1])}
    results = []
    for ops in (built, library.find()):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(str(ops))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds))
    for own, other in zip(*results, strict=True):
        np.testing.assert_array_equal(own, other)
