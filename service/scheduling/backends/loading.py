"""A bundle of any kind, loaded to run.

On a CPU in a session of ONNX Runtime with one thread a run, run from every worker at once: that
beats batching there, and keeps one copy of the weights (measured). On a GPU, in ONNX Runtime or in
engines of TensorRT, batches, of captured graphs for the plans of the levels.
"""

from __future__ import annotations

from pathlib import Path

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.graph import Device
from tokenfold.runtime.pair import PairSession
from tokenfold.runtime.session import Session
from tokenfold.service.scheduling.backends.backend import Backend
from tokenfold.service.scheduling.backends.classifier import ClassifierBackend
from tokenfold.service.scheduling.backends.dual import DualBackend
from tokenfold.service.scheduling.backends.pairs import PairBackend


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
