"""TensorRT for RTX, which builds without a GPU, and plugins on this machine's processor."""

from __future__ import annotations

from functools import cache

import pytest

from export.bundle import Bundle
from export.tensorrt import flavour, plugins, target
from export.tensorrt.builder import Builder
from export.tensorrt.engines import Origin, origins
from export.tensorrt.flavour import Flavour
from export.tensorrt.plugins import Plugins
from tests.cuda_host import tensorrt as built
from tests.cuda_host.library import compiler

RTX = "tensorrt-rtx"
GPU = "sm_89"

needs_rtx = pytest.mark.skipif(
    RTX not in flavour.installed() or compiler() is None,
    reason=f"found no {RTX}, or no C++ compiler for the plugins",
)


@cache
def rtx() -> Flavour:
    """It, loaded."""
    return flavour.load(RTX)


@cache
def registered() -> Plugins:
    """The plugins, registered with it."""
    found = plugins.registered(rtx(), built.build())
    assert found is not None
    return found


@cache
def builder(with_plugins: bool = True) -> Builder:
    """What builds for GPUs that are not here."""
    return Builder(rtx(), registered() if with_plugins else None, ahead=True)


def origin(
    bundle: Bundle, graph: str, *, with_plugins: bool = True, gpu: str = GPU, bfloat16: bool = False
) -> Origin:
    """What an engine of a graph is to be built from, for all plans."""
    own = target.ahead(rtx(), registered() if with_plugins else None, gpu)
    every = origins(bundle, own, precision="bf16" if bfloat16 else None)
    (found,) = (one for one in every if one.graph == graph)
    return found
