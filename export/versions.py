"""Of the packages that make a bundle."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("tokenfold", "torch", "onnx", "onnxruntime", "onnxruntime-gpu")
"""One ONNX Runtime excludes the other; a checkout that is run without being installed has no
version."""


def versions() -> dict[str, str]:
    """Package -> version of those that are installed, for the manifest."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
