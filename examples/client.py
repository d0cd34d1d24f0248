"""Classify images with a Tokenfold server: `python examples/client.py PHOTO ... --level fast`.

Needs httpx (`pip install httpx`) and a running server (`make serve`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx


def main() -> int:
    """Send the images in one request and print one line per image; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--model", help="default: the server's default")
    parser.add_argument("--level", help="default: the server's default")
    options = parser.parse_args()

    files = [("image", (path.name, path.read_bytes())) for path in options.images]
    fields = {"model": options.model, "level": options.level, "top_k": "1"}
    data = {name: value for name, value in fields.items() if value is not None}
    response = httpx.post(f"{options.server}/v1/classify", files=files, data=data, timeout=30)
    if response.is_error:
        problem = response.json()
        print(f"{problem['title']}: {problem['detail']}", file=sys.stderr)
        return 1

    for path, result in zip(options.images, response.json()["results"], strict=True):
        if "problem" in result:
            print(f"{path}: {result['problem']['detail']}", file=sys.stderr)
            continue
        best, reduction = result["predictions"][0], result["reduction"]
        print(
            f"{best['label']} ({best['score']:.0%}) {path}: level {reduction['level']}, "
            f"{reduction['tokens_in']} -> {reduction['tokens_out']} tokens, "
            f"{reduction['flops_ratio']:.0%} of the FLOPs, {result['timings_ms']['infer']:.1f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
