"""The pages of the documentation, and their code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", TOP / "examples" / "README.md", *sorted((TOP / "docs").glob("*.md"))]

NOT_RUN = "not run: "
SLOW = "runs in make test-more"
ANSWER = "answer of the block above"

# Reasons for which a block is not run, but checked for syntax and known options.
REASONS = {
    "installs packages",
    "measures for minutes",
    "needs .venv",
    "needs Docker",
    "needs a GPU",
    "needs the hub",
    "starts a server",
    "trains for an hour",
    "trains for half an hour",
    "trains for two hours",
}

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)|(?:srcset|src|href)=\"(?P<html>[^\"]+)\"")


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        page: the file.
        line: of the opening fence, counted from 1.
        language: as the fence names it.
        text: the content.
        mark: the HTML comment on the line above the fence, or an empty string.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        """The file and line, for messages."""
        return f"{self.page.relative_to(TOP)}:{self.line}"

    @property
    def skip_reason(self) -> str:
        """Why the block does not run, or an empty string."""
        return self.mark.removeprefix(NOT_RUN) if self.mark.startswith(NOT_RUN) else ""


def name(page: Path) -> str:
    """Return the page's path relative to the repository."""
    return str(page.relative_to(TOP))


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["text"],
            match["mark"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _BLOCK.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of all links and images of a page."""
    return [match["target"] or match["html"] for match in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in plain}
