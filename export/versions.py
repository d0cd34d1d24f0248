"""Of the packages that make a bundle."""

from __future__ import annotations

from importlib.metadata import version

PACKAGES = ("tokenfold", "torch", "onnx", "onnxruntime")


def versions() -> dict[str, str]:
    """Package -> version, for the manifest."""
    return {name: version(name) for name in PACKAGES}
