"""Print the versions of this environment's packages, as constraints for pip.

`make lock` runs it. Left out are this project; torch, whose version is in the Makefile; packages
that every environment has; and packages that only GPUs need, because they choose versions that fit
each other.
"""

from __future__ import annotations

import re
from importlib import metadata

HEADER = """\
# Versions that CI tests, and that `make` and the Dockerfile install with `pip install -c`.
# Written by `make lock`; do not edit. The version of torch is in the Makefile. Packages for GPUs
# (onnxruntime-gpu, TensorRT, CUDA) are not locked: they choose versions that fit each other.
"""
OMITTED = re.compile(
    "(tokenfold|torch|pip|setuptools|wheel|triton|onnxruntime-gpu)$|(nvidia|cuda|tensorrt)-"
)


def pins() -> list[str]:
    """Return `name==version` for each package, sorted, without local version labels."""
    versions = {
        re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version
        for package in metadata.distributions()
    }
    return [
        f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(versions.items())
        if not OMITTED.match(name)
    ]


if __name__ == "__main__":
    print(HEADER + "\n".join(pins()))
