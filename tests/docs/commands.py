"""The commands of shell blocks, and the options that the programs know."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

from tests.docs.pages import TOP, Block

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_SEPARATORS = {";", "|", "||", "&&", "&"}


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the simple commands of a block, as words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in lexer:
            if word in _SEPARATORS:
                yield words
                words = []
            else:
                words.append(word)
        yield words


def unknown(words: list[str]) -> str:
    """Return the options or arguments that the program does not know, or an empty string."""
    match words:
        case ["tokenfold", command, *rest]:
            return _unknown_options(("tokenfold", command), rest)
        case ["python", "-m", module, *rest]:
            return _unknown_options((module, *rest[:1]), rest)
        case ["make", *rest]:
            goals = [word for word in rest if "=" not in word]
            return ", ".join(f"make {goal}" for goal in goals if goal not in make_targets())
        case ["pip", "install", *rest]:
            extras = {extra for word in rest for extra in re.findall(r"[\w-]+(?=[,\]])", word)}
            return ", ".join(sorted(extras - project()["optional-dependencies"].keys()))
        case ["docker", "compose", "-f", file, *_]:
            return "" if (TOP / file).is_file() else file
        case ["docker", "build", *rest]:
            stages = re.findall(r"^FROM .* AS (\S+)", (TOP / "Dockerfile").read_text(), re.M)
            targets = [rest[at + 1] for at, word in enumerate(rest) if word == "--target"]
            return ", ".join(target for target in targets if target not in stages)
        case _:
            return ""


def _unknown_options(program: tuple[str, ...], words: list[str]) -> str:
    passed = {word.partition("=")[0] for word in words if word.startswith("--")}
    return ", ".join(sorted(passed - options(program)))


@cache
def options(program: tuple[str, ...]) -> frozenset[str]:
    """Return the options that a program's help lists.

    Args:
        program: a module, and a command of it or an argument, such as ("tokenfold", "serve").
    """
    module, *rest = program
    command = [word for word in rest if re.fullmatch("[a-z]+", word)]
    line = [sys.executable, "-m", module, *command, "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=TOP)
    if shown.returncode:
        raise ValueError(f"{' '.join(program)}: {shown.stderr or shown.stdout}")
    return frozenset(OPTION.findall(shown.stdout))


@cache
def make_targets() -> frozenset[str]:
    """Return the targets of the Makefile that people call."""
    phony = re.findall(r"^\.PHONY: (.+)$", (TOP / "Makefile").read_text(), re.M)
    return frozenset(target for line in phony for target in line.split())


@cache
def project() -> Any:
    """Return the project table of pyproject.toml."""
    return tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
