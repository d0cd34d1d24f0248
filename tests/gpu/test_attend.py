"""Tests of attention and importance on a GPU: those that also run as C++, capture, and timing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu import attend_device, attend_times, driver
from tests.native.cuda_host import attend_ops, library, nvrtc

# pytest collects the imported tests here; the fixture below makes them run on the GPU.
from tests.native.test_cuda_attend import (
    check,
    inputs,
)

pytestmark = [
    pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing())),
    pytest.mark.skipif(
        nvrtc.find() is None, reason=f"NVRTC is not installed: pip install {nvrtc.WHEEL}"
    ),
    library.needs_compiler,
]

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", autouse=True)
def on_the_gpu() -> Iterator[None]:
    """Replace the ops of the imported tests by those on the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("attend", "importance"):
            patch.setattr(attend_ops, name, getattr(attend_device, name))
        yield


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("head_dim", [32, 64, 72, 80, 96, 128])
def test_layers_of_real_sizes(head_dim: int, dtype: torch.dtype) -> None:
    for queries, tokens in ((197, 197), (40, 577), (577, 40), (133, 133)):
        check(*inputs(3, queries, tokens, 12 * head_dim, dtype, tokens), 12)


@pytest.mark.parametrize("dtype", HALVES)
def test_results_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    # A single image uses more blocks than each image of a large batch.
    q, k, v, size = inputs(40, 197, 197, 768, dtype, 0)
    batch_result = attend_device.attend(q, k, v, size, heads=12)
    alone = attend_device.attend(q[7:8], k[7:8], v[7:8], size[7:8], heads=12)
    assert torch.equal(batch_result[7:8], alone)


@pytest.mark.parametrize("batch", [1, 40])
def test_captured_launches_give_identical_results(batch: int) -> None:
    q, k, v, size = inputs(batch, 50, 197, 128, torch.float16, batch)
    weights = torch.ones(batch, 50)
    calls = [
        attend_device.attend_call(q, k, v, size, heads=2),
        attend_device.importance_call(q, k, size, weights, 40, heads=2),
    ]
    device = driver.device()
    for call in calls:
        graph = device.capture(call)
        device.replay(graph)
        device.replay(graph)
        captured = call.result()
        device.free_graph(graph)
        assert torch.equal(attend_device.run(call), captured)


def test_every_kernel_can_be_measured() -> None:
    # No speed is required, because the machine may be busy; `attend_times` prints the times.
    for row in attend_times.measure(batches=(8,)):
        assert row.seconds > 0
        assert row.bound > 0
