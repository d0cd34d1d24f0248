"""Build engines from a bundle's graphs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from onnx.external_data_helper import load_external_data_for_model

from tokenfold.runtime.cuda import device
from tokenfold.runtime.tensorrt import network
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.monitor import PhaseCallback, create_monitor
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.profiles import OptimizationProfile
from tokenfold.runtime.tensorrt.spec import EngineSpec
from tokenfold.runtime.tensorrt.store import replace
from tokenfold.runtime.tensorrt.variant import TensorRTError, TensorRTVariant

logger = logging.getLogger(__name__)

_WORKSPACE_SHARE = 0.5
"""Share of the GPU's free memory that a build may use as workspace."""

_ARCHITECTURE_PREFIX = "sm_"
"""Prefix of targets that are an architecture rather than the GPU of this machine."""


class Layer(NamedTuple):
    """A layer of a parsed network.

    Attributes:
        name: name of the ONNX node that it came from: op type and position.
        plugin: whether it is one of our plugins.
        shapes: shape of each output, with -1 for dynamic sizes.
    """

    name: str
    plugin: bool
    shapes: tuple[tuple[int, ...], ...]


class Builder:
    """Parses graphs and builds their engines. Not thread-safe."""

    def __init__(self, variant: TensorRTVariant, plugins: PluginLibrary | None) -> None:
        """Create TensorRT's builder.

        Args:
            plugins: None to build the portable bodies of the ops.

        Raises:
            TensorRTError: TensorRT cannot start here.
        """
        self._variant = variant
        self._plugins = plugins
        # Without a GPU, engines are built for other machines, and its absence is no error.
        self._has_gpu = device.missing() is None
        self._journal = Journal(variant, ahead=not self._has_gpu)
        try:
            self._builder = variant.api.Builder(self._journal.logger)
        except TypeError as error:  # Raised when TensorRT returns no builder.
            reason = self._journal.pop_error() or str(error)
            raise TensorRTError(f"{variant.version} cannot build: {reason}") from error

    def layers(self, graph: Path, spec: EngineSpec) -> list[Layer]:
        """Parse a graph, and return the layers of the network.

        Raises:
            TensorRTError: the graph cannot be parsed.
        """
        parsed = self._parse(graph, spec)
        return [
            _layer(parsed.get_layer(index), self._variant.api) for index in range(parsed.num_layers)
        ]

    def build(
        self,
        graph: Path,
        spec: EngineSpec,
        *,
        timing_cache: Path | None = None,
        progress: PhaseCallback = lambda _done, _phase: None,
    ) -> bytes:
        """Build an engine.

        Args:
            graph: the graph file that `spec` describes.
            timing_cache: file of kernel timings from earlier builds for the same target, which is
                read and updated.
            progress: called with the completed fraction and the phase. An exception that it raises
                ends the build.

        Raises:
            TensorRTError: the engine cannot be built.
            BaseException: an exception of `progress`.
        """
        parsed = self._parse(graph, spec)
        config = self._builder.create_builder_config()
        # As with ONNX Runtime: float32 is not reduced to TF32.
        config.clear_flag(self._variant.api.BuilderFlag.TF32)
        user_allocation = getattr(self._variant.api.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if user_allocation is not None:
            # Otherwise TensorRT for RTX might allocate during a run, which cannot be recorded.
            config.set_flag(user_allocation)
        config.profiling_verbosity = self._variant.api.ProfilingVerbosity.DETAILED
        # Keep all work in one stream, so that it can be recorded. Auxiliary streams would gain
        # nothing, because each layer of a network depends on the one before it.
        config.max_aux_streams = 0
        monitor = create_monitor(self._variant, progress)
        config.progress_monitor = monitor
        if self._has_gpu:
            # The rest is for other processes on this GPU, such as a server waiting for the engine.
            workspace = int(device.memory().free * _WORKSPACE_SHARE)
            config.set_memory_pool_limit(self._variant.api.MemoryPoolType.WORKSPACE, workspace)
        self._set_architecture(config, spec.target.gpu)
        for profile in spec.profiles:
            config.add_optimization_profile(self._profile(parsed, profile))
        if timing_cache is not None:
            self._load_timing_cache(config, timing_cache)
        engine = self._builder.build_serialized_network(parsed, config)
        if monitor.error is not None:
            raise monitor.error
        if engine is None:
            raise self._error(f"{graph} could not be built")
        if timing_cache is not None:
            self._save_timing_cache(config, timing_cache)
        progress(1.0, "Built")
        return bytes(engine)

    def _parse(self, graph: Path, spec: EngineSpec) -> Any:
        api = self._variant.api
        model = network.prepare(graph, plugins=self._plugins is not None, plan=spec.plan)
        if spec.precision == "bf16":
            load_external_data_for_model(model, str(graph.parent))
            network.to_bfloat16(model)
        flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        parsed = self._builder.create_network(0 if flag is None else 1 << int(flag))
        parser = api.OnnxParser(parsed, self._journal.logger)
        if not parser.parse(model.SerializeToString(), path=str(graph)):
            raise self._error(f"{graph} could not be parsed")
        return parsed

    def _set_architecture(self, config: Any, gpu: str) -> None:
        """Build for an architecture, if `gpu` names one and this TensorRT can."""
        if not gpu.startswith(_ARCHITECTURE_PREFIX) or not self._variant.aot_architectures:
            return
        capabilities = self._variant.api.ComputeCapability
        capability = getattr(capabilities, f"SM{gpu.removeprefix(_ARCHITECTURE_PREFIX)}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)

    def _profile(self, parsed: Any, sizes: OptimizationProfile) -> Any:
        profile = self._builder.create_optimization_profile()
        for index in range(parsed.num_inputs):
            tensor = parsed.get_input(index)
            name, shape = str(tensor.name), tuple(tensor.shape)
            if -1 in shape:
                ranges = sizes.shape(name, shape)
                set_ranges = profile.set_shape
            elif tensor.is_shape_tensor and name == "plan":
                ranges = sizes.plan
                set_ranges = profile.set_shape_input
            else:
                continue
            set_ranges(
                name,
                [size.min for size in ranges],
                [size.opt for size in ranges],
                [size.max for size in ranges],
            )
        return profile

    def _load_timing_cache(self, config: Any, path: Path) -> None:
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            logger.warning(
                "timing cache %s cannot be read, so all kernels are timed again: %s", path, error
            )
            content = b""
        cache = config.create_timing_cache(content)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)

    def _save_timing_cache(self, config: Any, path: Path) -> None:
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            replace(path, bytes(cache.serialize()))
        except OSError as error:
            logger.warning(
                "timing cache %s cannot be written, so the next build times all kernels again: %s",
                path,
                error,
            )

    def _error(self, message: str) -> TensorRTError:
        return TensorRTError(f"{message}: {self._journal.failure_reason(self._plugins)}")


def _layer(layer: Any, api: Any) -> Layer:
    return Layer(
        name=str(layer.name),
        plugin=layer.type == api.LayerType.PLUGIN_V3,
        shapes=tuple(tuple(layer.get_output(index).shape) for index in range(layer.num_outputs)),
    )
