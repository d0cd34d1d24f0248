"""What runs CUDA's threads as fibres finds the mistakes that it is for."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda_host import library
from tests.cuda_host.interface import Launch
from tests.cuda_host.library import ASCENDING, DESCENDING, FLAGS, HERE, KERNELS, SHUFFLED

pytestmark = library.needs_compiler

THREADS = 64

# Kernels whose arguments are one array of THREADS integers.
SOURCE = """
struct Arguments { int* out; };
extern __shared__ uint4 tokenfold_shared[];

static void neighbour(Arguments a, bool waits) {
  int* shared = reinterpret_cast<int*>(tokenfold_shared);
  const int i = threadIdx.x;
  shared[i] = i;
  if (waits) __syncthreads();
  a.out[i] = shared[(i + 1) % 64];
}

__global__ void right(Arguments a) { neighbour(a, true); }
__global__ void racing(Arguments a) { neighbour(a, false); }
__global__ void warped(Arguments a) {
  const int i = threadIdx.x;
  const unsigned odd = __ballot_sync(~0u, i % 2 == 1);
  a.out[i] = __shfl_xor_sync(~0u, i, 3) + (odd == 0xAAAAAAAAu ? 0 : 1000);
}
__global__ void diverging(Arguments a) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  a.out[threadIdx.x] = 0;
}
__global__ void leaving(Arguments) { if (threadIdx.x != 5) __syncthreads(); }
__global__ void half_a_warp(Arguments a) {
  if (threadIdx.x % 32 < 16) a.out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}
__global__ void beyond(Arguments) { reinterpret_cast<int*>(tokenfold_shared)[64] = 1; }

extern "C" int run(int which, int* out, unsigned shared_bytes) {
  void (*const kernels[])(Arguments) = {right,   racing,      warped, diverging,
                                        leaving, half_a_warp, beyond};
  TokenfoldLaunch launch{};
  launch.blocks = 1;
  launch.threads = 64;
  launch.shared_bytes = shared_bytes;
  Arguments arguments{out};
  return start(kernels[which], launch, arguments, nullptr);
}
"""
KERNELS_OF_SOURCE = ["right", "racing", "warped", "diverging", "leaving", "half_a_warp", "beyond"]

Run = Callable[..., tuple[list[int], str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a kernel by name in an order of threads: its array, and what was wrong."""
    folder = tmp_path_factory.mktemp("kernels")
    source, out = folder / "wrong.cu", folder / "wrong.so"
    source.write_text(SOURCE)
    found = library.compiler()
    assert found is not None
    flags: list[str | Path] = [*FLAGS, f"-I{KERNELS}", f"-I{HERE}", "-include", "cuda_host.h"]
    command = [found, *flags, "-o", out, "-x", "c++", source, HERE / "fibres.cc"]
    subprocess.run(command, check=True)
    built = ctypes.CDLL(str(out))
    built.tokenfold_host_problem.restype = ctypes.c_char_p

    def call(kernel: str, order: int = ASCENDING, shared_bytes: int = 256) -> tuple[list[int], str]:
        array = (ctypes.c_int * THREADS)()
        built.tokenfold_host_order(order, 1)
        code = built.run(KERNELS_OF_SOURCE.index(kernel), array, shared_bytes)
        problem = built.tokenfold_host_problem().decode()
        assert bool(code) == bool(problem)
        return list(array), problem

    return call


@pytest.mark.parametrize("order", [ASCENDING, DESCENDING, SHUFFLED])
def test_a_kernel_that_is_right_gives_one_result(run: Run, order: int) -> None:
    assert run("right", order) == ([(i + 1) % THREADS for i in range(THREADS)], "")
    assert run("warped", order) == ([i ^ 3 for i in range(THREADS)], "")


def test_a_race_gives_several(run: Run) -> None:
    found = {tuple(run("racing", order)[0]) for order in (ASCENDING, DESCENDING, SHUFFLED)}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("diverging", "threads meet at different barriers"),
        ("leaving", "ended while others wait at a barrier"),
        ("half_a_warp", "not all lanes of the warp take part"),
        ("beyond", "wrote beyond the shared memory"),
    ],
)
def test_what_is_undefined_is_told(run: Run, kernel: str, what: str) -> None:
    assert what in run(kernel)[1]


def test_more_shared_memory_than_any_gpu_has_is_told(run: Run) -> None:
    assert "no GPU launches 64 threads" in run("right", shared_bytes=228 * 1024)[1]


def test_a_launch_holds_the_arguments_of_every_kernel() -> None:
    assert ctypes.sizeof(Launch) == 40 + 4 * 4 + 16 * 8
