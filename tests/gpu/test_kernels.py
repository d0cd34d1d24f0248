"""Tests of the CUDA kernels on a GPU: those that also run as C++, PTX, capture, and timing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu import device_ops, driver, times
from tests.native.cuda_host import library, nvrtc, ops

# pytest collects the imported tests here; the fixture below makes them run on the GPU.
from tokenfold.models.reduction import slots as slotting

pytestmark = [
    pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing())),
    pytest.mark.skipif(
        nvrtc.find() is None, reason=f"NVRTC is not installed: pip install {nvrtc.WHEEL}"
    ),
    library.needs_compiler,
]


@pytest.fixture(scope="module", autouse=True)
def on_the_gpu() -> Iterator[None]:
    """Replace the ops of the imported tests by those on the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("match", "match_pumer", "unit_metric", "reduce"):
            patch.setattr(ops, name, getattr(device_ops, name))
        yield


def test_the_driver_compiles_ptx() -> None:
    for source in ("match.cu", "reduce.cu"):
        compiled = nvrtc.compile_file(library.KERNELS / source, "compute_75")
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
    # There are more blocks than run at once; each image has its own part of the workspace.
    draw = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    keys = axes[torch.randint(32, (700, 65), generator=draw)].half()
    size = torch.ones(700, 65)
    slots = device_ops.match(op, keys, size, 16, heads=1, protected=1, margin=0.5)
    for image in (0, 131, 699):
        part = slice(image, image + 1)
        alone = device_ops.match(op, keys[part], size[part], 16, heads=1, protected=1, margin=0.5)
        assert torch.equal(slots[part], alone)


@pytest.mark.parametrize("batch", [1, 40])
def test_captured_launches_give_identical_results(batch: int) -> None:
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
        graph = device.capture(call)
        # Capturing runs nothing; each replay runs everything.
        for name, tensor in call.results().items():
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        device.replay(graph)
        device.replay(graph)
        captured = call.results()
        device.free_graph(graph)
        call()
        for name, tensor in call.results().items():
            assert torch.equal(tensor.view(torch.uint8), captured[name].view(torch.uint8)), name
        call.free()


def test_every_kernel_can_be_measured() -> None:
    # No speed is required, because the machine may be busy; `times` prints the times.
    for row in times.measure(batches=(8,)):
        assert row.seconds > 0
        assert row.bound > 0
