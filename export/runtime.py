"""Running an image classifier's graph in ONNX Runtime. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from export import hugepages
from export.bundle import Bundle
from export.machine import saturates
from export.plugins.onnxruntime import library


def open_graph(path: Path, *, threads: int, native: bool) -> tuple[ort.InferenceSession, bool]:
    """A graph, loaded to run on the CPU, and whether its ops are the compiled ones.

    Args:
        threads: inside one run. On a CPU, one-thread runs side by side beat wider ones.
        native: whether to use the compiled ops where they are built.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; its warnings are advice on the graph
    if saturates():
        # Unsigned weights then; nearly half as fast, so not where it is not needed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    plugin = library.find() if native else None
    if plugin is not None:
        options.register_custom_ops_library(str(plugin))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, plugin is not None


class Output(NamedTuple):
    """Logits (B, classes) float32, and slots (B, N) int64 where they were asked for."""

    logits: npt.NDArray[np.float32]
    slots: npt.NDArray[np.int64] | None


class Session:
    """One ONNX Runtime session of a bundle: one copy of the weights, any number of threads at once.

    Attributes:
        native: whether the compiled ops run, rather than their portable bodies.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, native: bool = True) -> None:
        """Load the graph; see `open_graph`."""
        self._session, self.native = open_graph(bundle.model, threads=threads, native=native)
        hugepages.collapse()

    def run(
        self, images: npt.NDArray[np.uint8], plan: Sequence[int], *, slots: bool = False
    ) -> Output:
        """Run a batch.

        Args:
            images: (B, H, W, 3) uint8, of the bundle's input size.
            plan: tokens each layer removes.
            slots: whether to return the composed slots too.
        """
        feeds = {"image": images, "plan": np.asarray(plan, dtype=np.int64)}
        names = ["logits", "slots"] if slots else ["logits"]
        found: list[Any] = self._session.run(names, feeds)
        return Output(found[0], found[1] if slots else None)
