"""Tests of the CPU host of CUDA kernels: it detects races and undefined behaviour."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.cuda_host import library
from tests.native.cuda_host.interface import Launch
from tests.native.cuda_host.library import ASCENDING, DESCENDING, FLAGS, HERE, KERNELS, SHUFFLED

pytestmark = library.needs_compiler

THREADS = 64

# Kernels whose arguments are one array of THREADS integers.
SOURCE = """
#include "cluster.cuh"
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

// Each block has its index stored by all blocks in the place of their rank.
static void gather(Arguments a, bool waits) {
  const tokenfold::Cluster cluster;
  int* shared = static_cast<int*>(cluster.shared(tokenfold_shared));
  const int i = threadIdx.x;
  if (i < cluster.count) shared[i] = 0;
  cluster.wait();
  if (i == 0) cluster.everywhere(shared + cluster.rank, static_cast<int>(blockIdx.x));
  if (waits) cluster.wait();
  if (i < cluster.count) a.out[cluster.rank * cluster.count + i] = shared[i];
}
__global__ void together(Arguments a) { gather(a, true); }
__global__ void apart(Arguments a) { gather(a, false); }
__global__ void unequal(Arguments) {
  const tokenfold::Cluster cluster;
  if (threadIdx.x < 32)
    cluster.wait();
  else
    __syncthreads();
}
__global__ void one_leaves(Arguments) {
  const tokenfold::Cluster cluster;
  if (cluster.rank > 0) cluster.wait();
}
__global__ void beyond_in_the_last(Arguments) {
  const tokenfold::Cluster cluster;
  if (cluster.rank == 3) static_cast<int*>(cluster.shared(tokenfold_shared))[64] = 1;
}

extern "C" int run(int which, int* out, unsigned shared_bytes, unsigned cluster) {
  void (*const kernels[])(Arguments) = {right,  racing,  warped,     diverging,
                                        leaving, half_a_warp, beyond, together,
                                        apart, unequal, one_leaves, beyond_in_the_last};
  TokenfoldLaunch launch{};
  launch.blocks = cluster ? cluster : 1;
  launch.cluster = cluster;
  launch.threads = 64;
  launch.shared_bytes = shared_bytes;
  Arguments arguments{out};
  return start(kernels[which], launch, arguments, nullptr);
}
"""
KERNELS_OF_SOURCE = re.findall(r"__global__ void (\w+)", SOURCE)

Run = Callable[..., tuple[list[int], str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs a kernel in a thread order, and returns its array and error."""
    folder = tmp_path_factory.mktemp("kernels")
    source, out = folder / "wrong.cu", folder / "wrong.so"
    source.write_text(SOURCE)
    actual = library.compiler()
    assert actual is not None
    flags: list[str | Path] = [*FLAGS, f"-I{KERNELS}", f"-I{HERE}", "-include", "cuda_host.h"]
    sources = [source, HERE / "fibres.cc", KERNELS / "prepare.cc"]
    command = [actual, *flags, "-o", out, "-x", "c++", *sources]
    subprocess.run(command, check=True)
    built = ctypes.CDLL(str(out))
    built.tokenfold_host_problem.restype = ctypes.c_char_p

    def call(
        kernel: str, order: int = ASCENDING, shared_bytes: int = 256, cluster: int = 1
    ) -> tuple[list[int], str]:
        array = (ctypes.c_int * THREADS)()
        built.tokenfold_host_order(order, 1)
        code = built.run(KERNELS_OF_SOURCE.index(kernel), array, shared_bytes, cluster)
        problem = built.tokenfold_host_problem().decode()
        assert bool(code) == bool(problem)
        return list(array), problem

    return call


@pytest.mark.parametrize("order", [ASCENDING, DESCENDING, SHUFFLED])
def test_a_correct_kernel_gives_one_result(run: Run, order: int) -> None:
    assert run("right", order) == ([(i + 1) % THREADS for i in range(THREADS)], "")
    assert run("warped", order) == ([i ^ 3 for i in range(THREADS)], "")


def test_a_race_gives_several_results(run: Run) -> None:
    actual = {tuple(run("racing", order)[0]) for order in (ASCENDING, DESCENDING, SHUFFLED)}
    assert len(actual) == 3


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("diverging", "threads meet at different barriers"),
        ("leaving", "ended while others wait at a barrier"),
        ("half_a_warp", "not all lanes of the warp take part"),
        ("beyond", "wrote beyond the shared memory"),
    ],
)
def test_undefined_behaviour_is_reported(run: Run, kernel: str, message: str) -> None:
    assert message in run(kernel)[1]


@pytest.mark.parametrize("order", [ASCENDING, DESCENDING, SHUFFLED])
def test_blocks_of_a_cluster_reach_each_other(run: Run, order: int) -> None:
    actual, problem = run("together", order, cluster=4)
    assert problem == ""
    assert actual[:16] == [0, 1, 2, 3] * 4


def test_a_race_between_blocks_gives_several_results(run: Run) -> None:
    actual = {tuple(run("apart", order, cluster=4)[0]) for order in (ASCENDING, DESCENDING)}
    assert len(actual) == 2


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("unequal", "threads meet at different barriers"),
        ("one_leaves", "ended while others wait at a barrier"),
        ("beyond_in_the_last", "block 3, thread 0, line 0: wrote beyond the shared memory"),
    ],
)
def test_undefined_behaviour_in_a_cluster_is_reported(run: Run, kernel: str, message: str) -> None:
    assert message in run(kernel, cluster=4)[1]


def test_unsupported_cluster_sizes_are_reported(run: Run) -> None:
    assert "no GPU launches 16 blocks in clusters of 16" in run("together", cluster=16)[1]
    assert "in clusters of 0" in run("together", cluster=0)[1]


def test_too_much_shared_memory_is_reported(run: Run) -> None:
    assert "no GPU launches 64 threads" in run("right", shared_bytes=228 * 1024)[1]


def test_a_launch_holds_the_arguments_of_every_kernel() -> None:
    assert ctypes.sizeof(Launch) == 40 + 6 * 4 + 16 * 8
