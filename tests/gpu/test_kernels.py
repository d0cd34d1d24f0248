"""The CUDA kernels on a GPU: the tests that they pass as C++, and what only a GPU can show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu import device_ops, driver, times
from tests.native.cuda_host import library, nvrtc, ops

# Collected here, they run with the ops below put in place of those of `tests.native.cuda_host`.
from tokenfold.models.reduction import slots as slotting

pytestmark = [
    pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing())),
    pytest.mark.skipif(nvrtc.find() is None, reason=f"found no NVRTC: pip install {nvrtc.WHEEL}"),
    library.needs_compiler,
]


@pytest.fixture(scope="module", autouse=True)
def on_the_gpu() -> Iterator[None]:
    """The tests above call these ops."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("match", "match_pumer", "unit_metric", "reduce"):
            patch.setattr(ops, name, getattr(device_ops, name))
        yield


def test_the_driver_loads_the_kernels_as_ptx() -> None:
    for source in ("match.cu", "reduce.cu"):
        compiled = nvrtc.compiled(library.KERNELS / source, "compute_75")
        try:
            device = driver.device()
            module = device.load(compiled.binary)
        except driver.DriverError as error:
            if error.code != driver.UNSUPPORTED_PTX:
                raise
            pytest.skip(f"the driver, of CUDA {driver.device().version()}, is older than NVRTC")
        name = "match_tome" if source == "match.cu" else "reduce_float16"
        assert device.function(module, f"tokenfold_{name}")


@pytest.mark.parametrize("op", ["match_tome", "match_pitome"])
def test_a_batch_larger_than_the_gpu(op: str) -> None:
    # More blocks than run at once: each image has its own part of the workspace.
    draw = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    keys = axes[torch.randint(32, (700, 65), generator=draw)].half()
    size = torch.ones(700, 65)
    found = device_ops.match(op, keys, size, 16, heads=1, protected=1, margin=0.5)
    for image in (0, 131, 699):
        part = slice(image, image + 1)
        alone = device_ops.match(op, keys[part], size[part], 16, heads=1, protected=1, margin=0.5)
        assert torch.equal(found[part], alone)


@pytest.mark.parametrize("batch", [1, 40])
def test_a_captured_launch_gives_the_same_bits(batch: int) -> None:
    draw = torch.Generator().manual_seed(batch)
    keys = torch.randn(batch, 197, 128, generator=draw).half()
    size = torch.randint(1, 4, (batch, 197), generator=draw).float()
    trace = slotting.identity(batch, 197).contiguous()
    slots = device_ops.match("match_tome", keys, size, 16, heads=2, protected=1)
    calls = [
        device_ops.match_call("match_tome", keys, size, 16, heads=2, protected=1),
        device_ops.match_call("match_pitome", keys, size, 16, heads=2, protected=1, margin=0.45),
        device_ops.reduce_call(keys, size, slots, 181, trace),
    ]
    device = driver.device()
    for call in calls:
        before = call.results()
        graph = device.captured(call)
        # Nothing has run yet, then all has, as often as it is replayed.
        for name, tensor in call.results().items():
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        device.replay(graph)
        device.replay(graph)
        captured = call.results()
        device.forget(graph)
        call()
        for name, tensor in call.results().items():
            assert torch.equal(tensor.view(torch.uint8), captured[name].view(torch.uint8)), name
        call.free()


def test_every_kernel_can_be_timed() -> None:
    # No speed is asked here, for the machine may be busy; `times` prints what it measures.
    for row in times.measure(batches=(8,)):
        assert row.seconds > 0
        assert row.bound > 0
