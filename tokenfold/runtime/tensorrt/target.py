"""What engines are built for: the GPU that is here, or one that need not be."""

from __future__ import annotations

from tokenfold.runtime.cuda import device
from tokenfold.runtime.tensorrt.flavour import Flavour, TensorRtError
from tokenfold.runtime.tensorrt.origin import Target
from tokenfold.runtime.tensorrt.plugins import Plugins


def here(flavour: Flavour, plugins: Plugins | None) -> Target:
    """The first GPU that the process sees.

    TensorRT for RTX has one engine for all of a compute capability; full TensorRT times kernels on
    the one that is there, and its engine is of that GPU's name.

    Raises:
        TensorRtError: there is none, or this TensorRT does not know it.
    """
    if (why := device.missing()) is not None:
        raise TensorRtError(why)
    kind = device.architecture()
    if not flavour.ahead:
        return _target(flavour, plugins, f"{device.name()} {kind}")
    return ahead(flavour, plugins, kind)


def ahead(flavour: Flavour, plugins: Plugins | None, gpu: str) -> Target:
    """A GPU that need not be here, such as "sm_89" or "sm89".

    Raises:
        TensorRtError: this TensorRT does not build for it, or for none that is not here.
    """
    kind = f"sm_{gpu.removeprefix('sm').removeprefix('_')}"
    if kind in flavour.ahead:
        return _target(flavour, plugins, kind)
    if not flavour.ahead:
        raise TensorRtError(
            f"{flavour.version} builds for the GPU that is here, not for {gpu}; tensorrt-rtx "
            "builds for others"
        )
    raise TensorRtError(
        f"{flavour.version} does not build for {gpu}; it does for {', '.join(flavour.ahead)}"
    )


def _target(flavour: Flavour, plugins: Plugins | None, gpu: str) -> Target:
    fingerprint = None if plugins is None else plugins.fingerprint
    return Target(tensorrt=flavour.version, gpu=gpu, plugins=fingerprint)
