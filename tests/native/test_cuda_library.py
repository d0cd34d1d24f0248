"""Tests that the CUDA op libraries build for one architecture, and load without a GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests import tiny
from tests.native.cuda_host.library import TOP
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.verification.inputs import random_images
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime import libraries

FOLDER = TOP / "build" / "plugins-gpu-test"

pytestmark = [
    pytest.mark.skipif(
        shutil.which("nvcc") is None or shutil.which("cmake") is None,
        reason="nvcc or cmake is not installed",
    ),
    pytest.mark.skipif(
        libraries.find() is None, reason="the C++ ops are not built: run `make plugins`"
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def built() -> Path:
    """Build the libraries like `make plugins-cuda plugins-tensorrt CUDA_ARCHITECTURES=90`."""
    configure = ["-S", str(TOP / "native"), "-B", str(FOLDER), "-DCMAKE_CUDA_ARCHITECTURES=90"]
    for arguments in (configure, ["--build", str(FOLDER)]):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
    return FOLDER


LIBRARIES = pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("onnxruntime/libtokenfold_ort_cuda.so", ["RegisterCustomOps"]),
        (
            "tensorrt/libtokenfold_tensorrt.so",
            ["getCreators", "setLoggerFinder", "TokenfoldTensorRtProblem"],
        ),
    ],
)


@LIBRARIES
def test_library_loads_without_a_driver(built: Path, name: str, entries: list[str]) -> None:
    loaded = ctypes.CDLL(str(built / name), mode=os.RTLD_NOW)
    assert all(getattr(loaded, entry) for entry in entries)
    shown = subprocess.run(["ldd", built / name], check=True, capture_output=True, text=True).stdout
    assert "libcuda" not in shown
    assert "nvinfer" not in shown


@LIBRARIES
def test_library_exports_only_its_entry_points(built: Path, name: str, entries: list[str]) -> None:
    shown = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=posix", built / name],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    symbols = {line.split()[0] for line in shown.splitlines() if line.split()[1] == "T"}
    assert set(entries) <= symbols
    assert not any(entry.startswith(("tokenfold", "cuda", "__cuda")) for entry in symbols)


def test_cpu_sessions_give_equal_results(built: Path, tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    path = tmp_path / "model.onnx"
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True).write(path)
    feeds = {"image": random_images(tiny.SIZE, 3), "plan": np.array([2, 3, 1])}
    results = []
    for ops in (built / "onnxruntime" / "libtokenfold_ort_cuda.so", libraries.find()):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(str(ops))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds))
    for cuda_output, cpu_output in zip(*results, strict=True):
        np.testing.assert_array_equal(cuda_output, cpu_output)
