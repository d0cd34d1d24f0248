"""A bundle of any kind, loaded to run.

On a CPU in a session of ONNX Runtime with one thread a run, run from every worker at once: that
beats batching there, and keeps one copy of the weights (measured). On a GPU, in ONNX Runtime or in
engines of TensorRT, batches, of captured graphs for the plans of the levels.
"""

from __future__ import annotations

from pathlib import Path

from export.bundle import Bundle
from export.dual_runtime import DualSession
from export.pair_runtime import PairSession
from export.runtime import Device, Session
from service.backends.backend import Backend
from service.backends.classifier import ClassifierBackend
from service.backends.dual import DualBackend
from service.backends.pairs import PairBackend


def load(bundle: Bundle, device: Device = "cpu", *, engines: Path | None = None) -> Backend:
    """Load it.

    Args:
        engines: the folder with its engines, where the device is "tensorrt".

    Raises:
        RuntimeError: there is no such device, or an engine is not there or does not fit.
    """
    match bundle.manifest.kind:
        case "classifier":
            session = Session(bundle, device=device, engines=engines)
            return ClassifierBackend(session, bundle, device)
        case "pair":
            pairs = PairSession(bundle, device=device, engines=engines)
            return PairBackend(pairs, bundle, device)
        case "dual":
            dual = DualSession(bundle, device=device, engines=engines)
            return DualBackend(dual, bundle, device)
