"""Build targets: the TensorRT version, the GPU and the plugins that an engine is built for."""

from __future__ import annotations

import re

from tokenfold.bundle.document import Document
from tokenfold.runtime.cuda import device
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.variant import TensorRTError, TensorRTVariant


class BuildTarget(Document):
    """The TensorRT version, GPU and plugins that an engine is built for.

    Attributes:
        tensorrt: name and version; see `TensorRTVariant.version`.
        gpu: such as "NVIDIA H200 sm_90"; or "sm_89" for all GPUs of that architecture.
        plugins: fingerprint of the plugin library; None for the portable bodies of the ops.
    """

    tensorrt: str
    gpu: str
    plugins: str | None

    @property
    def timing_cache_file(self) -> str:
        """File name of the timing cache of this target's builds."""
        return file_name(self.tensorrt, self.gpu) + ".timings"


def current_target(variant: TensorRTVariant, plugins: PluginLibrary | None) -> BuildTarget:
    """Return the target for the first GPU that the process sees.

    An engine of TensorRT for RTX fits all GPUs of one architecture. An engine of the full TensorRT
    fits GPUs of one name, because its build measures kernels on the GPU.

    Raises:
        TensorRTError: there is no GPU, or this TensorRT does not support it.
    """
    if (reason := device.missing()) is not None:
        raise TensorRTError(reason)
    architecture = device.architecture()
    if not variant.aot_architectures:
        return _target(variant, plugins, f"{device.name()} {architecture}")
    return aot_target(variant, plugins, architecture)


def aot_target(variant: TensorRTVariant, plugins: PluginLibrary | None, gpu: str) -> BuildTarget:
    """Return the target for a GPU architecture, such as "sm_89" or "sm89", present or not.

    Raises:
        TensorRTError: this TensorRT does not build for `gpu`, or only for a GPU that is present.
    """
    architecture = f"sm_{gpu.removeprefix('sm').removeprefix('_')}"
    if architecture in variant.aot_architectures:
        return _target(variant, plugins, architecture)
    if not variant.aot_architectures:
        raise TensorRTError(
            f"{variant.version} builds only for the GPU of this machine, not for {gpu}; "
            "tensorrt-rtx builds for others"
        )
    raise TensorRTError(
        f"{variant.version} does not build for {gpu}; "
        f"supported: {', '.join(variant.aot_architectures)}"
    )


def file_name(*parts: str) -> str:
    """Join parts to a portable file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "--".join(parts))


def _target(variant: TensorRTVariant, plugins: PluginLibrary | None, gpu: str) -> BuildTarget:
    fingerprint = None if plugins is None else plugins.fingerprint
    return BuildTarget(tensorrt=variant.version, gpu=gpu, plugins=fingerprint)
