"""The command line: `tokenfold serve`, `export`, `inspect`, `build`, `bench` and `ingest`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class _Command(NamedTuple):
    module: str
    about: str
    extra: str  # the extra of pyproject.toml that installs the imports of the module


_COMMANDS = {
    "serve": _Command("tokenfold.service.server", "serve bundles over HTTP", "cpu"),
    "export": _Command("tokenfold.export.cli", "make a bundle from a checkpoint", "export"),
    "build": _Command(
        "tokenfold.runtime.tensorrt.command", "build a bundle's TensorRT engines", "tensorrt"
    ),
    "bench": _Command("tokenfold.bench.command", "measure a bundle's levels", "cpu"),
    "inspect": _Command("tokenfold.bundle.command", "print the description of a bundle", "cpu"),
    "ingest": _Command("tokenfold.client.ingest", "send a folder of images to a gallery", "cpu"),
}


def _usage() -> str:
    lines = ["usage: tokenfold [--help] [--version] COMMAND ...", "", "commands:"]
    lines += [f"  {name:8} {command.about}" for name, command in _COMMANDS.items()]
    lines += ["", "Run `tokenfold COMMAND --help` for the options of a command."]
    return "\n".join(lines)


def _version() -> str:
    try:
        return version("tokenfold")
    except PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(_usage(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"tokenfold {_version()}")
        return 0
    command = _COMMANDS.get(name)
    if command is None:
        print(f"tokenfold: unknown command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        # Only the command's own imports: serving needs no torch.
        module = importlib.import_module(command.module)
        return int(module.main(rest) or 0)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "tokenfold"):
            raise  # a missing module of this project is a bug, not a missing extra
        print(
            f"tokenfold {name} needs {missing}, which is not installed: "
            f"pip install 'tokenfold[{command.extra}]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
