"""How many items make a run: by the device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenfold.runtime.cuda.buckets import BUCKETS
from tokenfold.runtime.graph import Device
from tokenfold.service.scheduling.backends.batching import max_concurrent_runs, take

GPU: tuple[Device, ...] = ("cuda", "tensorrt")


def test_runs_on_their_way() -> None:
    assert max_concurrent_runs("cpu") is None
    assert max_concurrent_runs("cuda") == max_concurrent_runs("tensorrt") == 2


def test_on_a_cpu_one_by_one_unless_batches_gain() -> None:
    assert take("cpu", 100, most=128) == 1
    assert take("cpu", 100, beside=16, most=128) == 16
    assert take("cpu", 3, beside=16, most=128) == 3


@given(st.sampled_from(GPU), st.integers(1, 1000), st.sampled_from(BUCKETS))
def test_on_a_gpu_what_waits_and_little_padding(device: Device, waiting: int, most: int) -> None:
    items = take(device, waiting, most=most)
    assert 1 <= items <= min(waiting, most)
    size = min(bucket for bucket in BUCKETS if bucket >= items)
    assert 4 * (size - items) <= size
    # No more runs than it takes are left for later.
    assert waiting >= most or 2 * items > waiting
