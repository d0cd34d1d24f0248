"""From a bundle's graph to an engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from onnx.external_data_helper import load_external_data_for_model

from tokenfold.runtime.cuda import device
from tokenfold.runtime.tensorrt import network
from tokenfold.runtime.tensorrt.engines import replace
from tokenfold.runtime.tensorrt.flavour import Flavour, TensorRtError
from tokenfold.runtime.tensorrt.journal import Journal
from tokenfold.runtime.tensorrt.monitor import Advance, monitor
from tokenfold.runtime.tensorrt.origin import Origin
from tokenfold.runtime.tensorrt.plugins import Plugins
from tokenfold.runtime.tensorrt.profiles import Profile

logger = logging.getLogger(__name__)

_SHARE = 0.5
"""Of the GPU's free memory what a build may work in."""

AHEAD = "sm_"
"""What the names of GPUs begin with that engines can be built for without one."""


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
        name: of the node that it came from: op type and position.
        plugin: whether it is one of our plugins.
        shapes: of its outputs, -1 for sizes that vary.
    """

    name: str
    plugin: bool
    shapes: tuple[tuple[int, ...], ...]


class Builder:
    """Parses graphs, and builds their engines. Not for threads to share."""

    def __init__(self, flavour: Flavour, plugins: Plugins | None) -> None:
        """Args:
        plugins: None to build the ops' bodies.

        Raises:
            TensorRtError: TensorRT cannot start here.
        """
        self._flavour = flavour
        self._plugins = plugins
        # Where there is no GPU it builds for others, and that there is none is no error.
        self._here = device.missing() is None
        self._journal = Journal(flavour, ahead=not self._here)
        try:
            self._builder = flavour.api.Builder(self._journal.logger)
        except TypeError as error:  # its way to say that there is none
            why = self._journal.take() or str(error)
            raise TensorRtError(f"{flavour.version} cannot build: {why}") from error

    def layers(self, graph: Path, origin: Origin) -> list[Layer]:
        """The layers of a graph's network, as TensorRT has parsed it.

        Raises:
            TensorRtError: it cannot be parsed.
        """
        parsed = self._parsed(graph, origin)
        return [_layer(parsed.get_layer(at), self._flavour.api) for at in range(parsed.num_layers)]

    def build(
        self,
        graph: Path,
        origin: Origin,
        *,
        timings: Path | None = None,
        advance: Advance = lambda _done, _phase: None,
    ) -> bytes:
        """Build an engine.

        Args:
            graph: the file that `origin` is of.
            timings: a file of what earlier builds measured for the same GPU; it is added to.
            advance: told how far the build is, 0 to 1, and what it is at. What it raises ends the
                build.

        Raises:
            TensorRtError: it cannot be built.
            BaseException: of `advance`.
        """
        parsed = self._parsed(graph, origin)
        config = self._builder.create_builder_config()
        # As on ONNX Runtime: float32 is float32.
        config.clear_flag(self._flavour.api.BuilderFlag.TF32)
        allocated = getattr(self._flavour.api.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if allocated is not None:
            # TensorRT for RTX might allocate inside a run otherwise, which cannot be recorded.
            config.set_flag(allocated)
        config.profiling_verbosity = self._flavour.api.ProfilingVerbosity.DETAILED
        # All work in one stream, which is recorded; a network's layers follow each other anyway.
        config.max_aux_streams = 0
        watching = monitor(self._flavour, advance)
        config.progress_monitor = watching
        if self._here:
            # The rest is for whoever else is at work on it, such as a server that waits for this.
            space = int(device.memory().free * _SHARE)
            config.set_memory_pool_limit(self._flavour.api.MemoryPoolType.WORKSPACE, space)
        self._aim(config, origin.target.gpu)
        for profile in origin.profiles:
            config.add_optimization_profile(self._profile(parsed, profile))
        if timings is not None:
            self._recall(config, timings)
        built = self._builder.build_serialized_network(parsed, config)
        if watching.error is not None:
            raise watching.error
        if built is None:
            raise self._failed(f"{graph} could not be built")
        if timings is not None:
            self._remember(config, timings)
        advance(1.0, "Built")
        return bytes(built)

    def _parsed(self, graph: Path, origin: Origin) -> Any:
        api = self._flavour.api
        model = network.prepared(graph, plugins=self._plugins is not None, plan=origin.plan)
        if origin.precision == "bf16":
            load_external_data_for_model(model, str(graph.parent))
            network.to_bfloat16(model)
        flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        parsed = self._builder.create_network(0 if flag is None else 1 << int(flag))
        parser = api.OnnxParser(parsed, self._journal.logger)
        if not parser.parse(model.SerializeToString(), path=str(graph)):
            raise self._failed(f"{graph} could not be parsed")
        return parsed

    def _aim(self, config: Any, gpu: str) -> None:
        """Build for a GPU that is not here, where one is named."""
        if not gpu.startswith(AHEAD) or not self._flavour.ahead:
            return
        kinds = self._flavour.api.ComputeCapability
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(kinds, f"SM{gpu.removeprefix(AHEAD)}"), 0)

    def _profile(self, parsed: Any, wanted: Profile) -> Any:
        profile = self._builder.create_optimization_profile()
        for at in range(parsed.num_inputs):
            given = parsed.get_input(at)
            name, shape = str(given.name), tuple(given.shape)
            if -1 in shape:
                sizes = wanted.shape(name, shape)
                setter = profile.set_shape
            elif given.is_shape_tensor and name == "plan":
                sizes = wanted.plan
                setter = profile.set_shape_input
            else:
                continue
            setter(
                name,
                [size.least for size in sizes],
                [size.usual for size in sizes],
                [size.most for size in sizes],
            )
        return profile

    def _recall(self, config: Any, timings: Path) -> None:
        try:
            known = timings.read_bytes() if timings.is_file() else b""
        except OSError as error:
            logger.warning("%s cannot be read, so all is timed anew: %s", timings, error)
            known = b""
        cache = config.create_timing_cache(known)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)

    def _remember(self, config: Any, timings: Path) -> None:
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            replace(timings, bytes(cache.serialize()))
        except OSError as error:
            logger.warning("%s cannot be written, so all will be timed anew: %s", timings, error)

    def _failed(self, what: str) -> TensorRtError:
        return TensorRtError(f"{what}: {self._journal.why(self._plugins)}")


def _layer(layer: Any, api: Any) -> Layer:
    return Layer(
        name=str(layer.name),
        plugin=layer.type == api.LayerType.PLUGIN_V3,
        shapes=tuple(tuple(layer.get_output(at).shape) for at in range(layer.num_outputs)),
    )
