"""Tests that the CUDA kernels compile for every architecture without warnings, without a GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.cuda_host import interface, library, nvrtc
from tests.native.cuda_host.library import KERNELS, needs_compiler

ARCHITECTURES = [int(line) for line in (KERNELS / "architectures.txt").read_text().split()]
ENTRIES = {
    "match.cu": {
        f"tokenfold_match_{op}"
        for op in ("tome", "pitome", "pumer", "tome_resident", "pitome_resident", "nothing")
    },
    "reduce.cu": {f"tokenfold_reduce_{name}" for name in ("float32", "float16", "bfloat16")},
    "attend.cu": {
        f"tokenfold_attend_{name}_{shape}"
        for name in ("float16", "bfloat16")
        for shape in ("32x16", "64x16", "64x32", "80x16", "96x16", "128x16")
    },
    "attend_plain.cu": {f"tokenfold_attend_plain_{parts}" for parts in (1, 2, 4)},
    "importance.cu": {
        f"tokenfold_importance_{part}"
        for part in ("heads", "heads_float16", "heads_bfloat16", "mean")
    },
}
SOURCES = list(ENTRIES)
# Maximum numbers of threads per block.
THREADS = {
    "match.cu": {"512"},
    "reduce.cu": {"256"},
    "attend.cu": {"128", "224", "256"},
    "attend_plain.cu": {"128"},
    "importance.cu": {"128", "256"},
}
# Start of an ELF header, and CUDA's machine number in it.
CUBIN = b"\x7fELF"
CUDA_MACHINE = 190

needs_nvrtc = pytest.mark.skipif(
    nvrtc.find() is None, reason=f"NVRTC is not installed: pip install {nvrtc.WHEEL}"
)
HAS_NVCC = shutil.which("nvcc") is not None and shutil.which("cmake") is not None
needs_nvcc = pytest.mark.skipif(not HAS_NVCC, reason="nvcc or cmake is not installed")
# With nvcc, which compiles for all architectures, NVRTC compiles only for some.
FOR_NVRTC = [75, 90, 120] if HAS_NVCC else ARCHITECTURES


def entries(ptx: str) -> set[str]:
    return set(re.findall(r"\.entry (\w+)", ptx))


@needs_nvrtc
def test_nvrtc_supports_every_architecture() -> None:
    assert ARCHITECTURES[0] == 75
    assert ARCHITECTURES[-1] == 120
    assert set(ARCHITECTURES) <= set(nvrtc.architectures())


@needs_nvrtc
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", FOR_NVRTC)
def test_nvrtc_compiles_every_kernel(source: str, architecture: int) -> None:
    binary, log = nvrtc.compile_file(KERNELS / source, f"sm_{architecture}")
    assert log == ""
    assert binary.startswith(CUBIN)
    assert int.from_bytes(binary[18:20], "little") == CUDA_MACHINE
    for name in ENTRIES[source]:
        assert name.encode() in binary


@needs_nvrtc
@pytest.mark.parametrize("source", SOURCES)
def test_ptx_has_every_kernel_with_its_thread_count(source: str) -> None:
    binary, log = nvrtc.compile_file(KERNELS / source, f"compute_{ARCHITECTURES[0]}")
    assert log == ""
    ptx = binary.rstrip(b"\0").decode()
    assert entries(ptx) == ENTRIES[source]
    threads = set(re.findall(r"\.maxntid (\d+)", ptx))
    assert threads == THREADS[source]
    # Only atomic bitwise or is allowed, because its result does not depend on the order.
    atomics = set(re.findall(r"(?<![\w.])(?:atom|red)\.[\w.]+", ptx))
    assert bool(atomics) == (source in {"match.cu", "reduce.cu"})
    assert all(".or.b32" in atomic for atomic in atomics)
    assert ".f64" not in ptx
    # Threads of a block read each other's writes, so non-coherent loads are not allowed there.
    assert source != "match.cu" or "ld.global.nc" not in ptx


@needs_compiler
@needs_nvrtc
def test_host_and_kernels_agree_on_the_arguments() -> None:
    for source in SOURCES:
        ptx = nvrtc.compile_file(KERNELS / source, f"compute_{ARCHITECTURES[0]}").binary.decode()
        actual = re.findall(r"\.param \.align (\d+) \.b8 (tokenfold_\w+)_param_0\[(\d+)\]", ptx)
        assert {name for _, name, _ in actual} == ENTRIES[source]
        for alignment, name, size in actual:
            ops = (op for op in interface.LAUNCHES if name.startswith(f"tokenfold_{op}"))
            # The kernel that matches nothing serves several ops.
            op = next(ops, "match_tome")
            _, launch = library.prepare(op, interface.LAUNCHES[op](heads=1, head_dim=1))
            assert launch.argument_bytes == int(size)
            # Size of TokenfoldLaunch.arguments.
            assert ctypes.alignment(ctypes.c_uint64) == int(alignment)


@needs_nvrtc
def test_rows_are_moved_16_bytes_at_a_time() -> None:
    binary, _ = nvrtc.compile_file(KERNELS / "reduce.cu", f"compute_{ARCHITECTURES[0]}")
    kernels = binary.decode().split(".entry ")[1:]
    assert len(kernels) == 3
    for kernel in kernels:
        # Each lane has four loads in flight, and as many stores.
        assert len(re.findall(r"ld\.global(?:\.\w+)*\.v4\.\w+", kernel)) >= 4
        assert len(re.findall(r"st\.global(?:\.\w+)*\.v4\.\w+", kernel)) >= 4


@needs_nvrtc
def test_attention_runs_on_tensor_cores() -> None:
    for architecture, shape in ((75, "m16n8k8"), (80, "m16n8k16"), (120, "m16n8k16")):
        binary, _ = nvrtc.compile_file(KERNELS / "attend.cu", f"compute_{architecture}")
        for kernel in binary.decode().split(".entry ")[1:]:
            products = set(re.findall(r"mma\.sync\.aligned\.[\w.]+", kernel))
            if architecture == 75 and kernel.startswith("tokenfold_attend_bfloat16"):
                assert not products
                continue
            assert len(products) == 1
            type_ = "bf16" if kernel.startswith("tokenfold_attend_bfloat16") else "f16"
            assert f"{shape}.row.col.f32.{type_}.{type_}.f32" in products.pop()
            assert "ldmatrix.sync.aligned.m8n8.x4.trans" in kernel
            assert ("cp.async.cg.shared.global" in kernel) == (architecture >= 80)


@needs_nvrtc
def test_warnings_are_reported(tmp_path: Path) -> None:
    source = tmp_path / "warned.cu"
    source.write_text('extern "C" __global__ void f(int* p) { int unused; *p = 1; }')
    binary, log = nvrtc.compile_file(source, "compute_90")
    assert binary
    assert "unused" in log
    source.write_text("no kernel")
    binary, log = nvrtc.compile_file(source, "compute_90")
    assert binary == b""
    assert "error" in log


@needs_nvcc
@pytest.mark.timeout(900)
def test_nvcc_compiles_a_fat_binary(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for command in (["-S", str(KERNELS), "-B", folder], ["--build", folder, "--parallel", "2"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
    built = tmp_path / "libtokenfold_cuda.a"
    assert built.is_file()
    listed = shutil.which("cuobjdump")
    if listed is not None:
        shown = subprocess.run([listed, "--list-elf", built], capture_output=True, text=True)
        actual = {int(number) for number in re.findall(r"sm_(\d+)", shown.stdout)}
        assert actual == set(ARCHITECTURES)
