"""Tables of the documentation that are written from the program.

    python -m tests.docs.tables

The command rewrites the text between `<!-- table: NAME -->` and `<!-- end of table -->` in the
pages of docs/. A test checks that the pages are up to date.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import Metric
from pydantic.fields import FieldInfo

from tokenfold.inference.errors import InternalError, RequestError
from tokenfold.service.api.problems import PREFIX, status_of
from tokenfold.service.app import create_app
from tokenfold.service.errors import Abandoned
from tokenfold.service.settings import DEMO, Settings

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"

# Settings whose default depends on the machine.
COMPUTED = {
    "bundles": "the built-in bundles",
    "data_dir": "`tokenfold` in the user's data folder",
    "engines": "`tokenfold/engines` in the user's cache",
    "decoders": "one per core",
}
# Metrics that only a machine with a GPU has.
GPU = "tokenfold_gpu_"
# Prometheus adds these to the name of a counter; `collect` leaves them out.
SUFFIXES = {"counter": "_total"}


def main() -> int:
    """Rewrite the tables in place; return the exit code."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        written = rewritten(text)
        if written != text:
            path.write_text(written)
            print(f"rewrote {path.relative_to(TOP)}")
    return 0


def rewritten(text: str) -> str:
    """Return the text of a page with all of its tables up to date."""
    for name, table in TABLES.items():
        begin = BEGIN.format(name)
        before, marker, rest = text.partition(begin)
        if not marker:
            continue
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{begin} is not followed by {END}")
        text = f"{before}{begin}\n\n{table()}\n\n{END}{after}"
    return text


def settings() -> str:
    """Return the table of `Settings`: flag, default, description."""
    rows = [
        (f"`--{name.replace('_', '-')}`", _default(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return markdown(("Flag", "Default", "Meaning"), rows)


def _default(name: str, field: FieldInfo) -> str:
    if name in COMPUTED:
        return COMPUTED[name]
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    return "`on`" if value is True else "`off`" if value is False else f"`{value}`"


def metrics() -> str:
    """Return the table of a CPU server's metrics: name, type, labels, help."""
    with application() as app:
        families: list[Metric] = list(app.state.core.metrics.registry.collect())
        labels = _labels(app.state.core.metrics.registry)
    rows = [
        (f"`{family.name}{SUFFIXES.get(family.type, '')}`", family.type,
         ", ".join(f"`{label}`" for label in labels.get(family.name, ())), family.documentation)
        for family in families
        if family.name.startswith("tokenfold_") and not family.name.startswith(GPU)
    ]  # fmt: skip
    return markdown(("Metric", "Type", "Labels", "Meaning"), sorted(rows))


def _labels(registry: Any) -> dict[str, tuple[str, ...]]:
    """Return the label names of each metric, which a metric without samples has too."""
    collectors = list(registry._collector_to_names)
    return {
        collector._name: collector._labelnames
        for collector in collectors
        if hasattr(collector, "_labelnames")
    }


def routes() -> str:
    """Return the table of the routes in the OpenAPI description: method, path, summary."""
    with application() as app:
        paths = app.openapi()["paths"]
    rows = [
        (f"`{method.upper()} {path}`", operation.get("summary", ""))
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]
    return markdown(("Route", "Summary"), rows)


def problems() -> str:
    """Return the table of the errors that a client can receive: status, type, title."""
    rows = sorted(
        (status_of(kind), f"`{PREFIX}{kind.slug}`", kind.title)
        for kind in _kinds(RequestError)
        if kind is not Abandoned  # its client has disconnected
    )
    distinct = dict.fromkeys((f"{status}", slug, title) for status, slug, title in rows)
    return markdown(("Status", "Type", "Title"), list(distinct))


def _kinds(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    """Yield the subclasses of `kind` that define a problem."""
    for subclass in kind.__subclasses__():
        if "slug" in vars(subclass) or subclass is InternalError:
            yield subclass
        yield from _kinds(subclass)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; pipes in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


@contextmanager
def application() -> Iterator[FastAPI]:
    """Yield the app of a server with the built-in bundles, not started."""
    with tempfile.TemporaryDirectory() as folder:
        # Explicit, so that environment variables do not change the tables.
        values = {"bundles": DEMO, "data_dir": folder, "engines": Path(folder), "backend": "cpu"}
        yield create_app(Settings.model_validate(values))


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "routes": routes,
    "problems": problems,
}


if __name__ == "__main__":
    sys.exit(main())
