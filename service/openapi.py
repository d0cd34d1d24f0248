"""The OpenAPI document: what FastAPI cannot see because the routes read their bodies themselves.

The same pydantic model describes a form and JSON; here it becomes the schema of each, with the
names of the models and levels that are served.
"""

from __future__ import annotations

import io
from base64 import b64encode
from copy import deepcopy
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed
from itertools import combinations
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from PIL import Image

from models.tasks import Task
from service.body import repeated
from service.engine import Engine
from service.errors import MEDIA_TYPE, Problem
from service.levels import Selector
from service.schemas import Asked
from service.texts import LONGEST

_REF = "#/components/schemas/"

_PROBLEMS = {
    400: "The body is not what its content type says",
    404: "Unknown model",
    408: "The body did not arrive in time",
    409: "No level meets the budget of time or accuracy",
    413: "The body or the image is too large",
    415: "Neither a form nor JSON, or no image of a known format",
    422: "Fields or images that cannot be used",
    431: "The headers are too long",
    500: "A fault of the server",
    503: "Busy, starting or shutting down",
}

_REQUESTS: dict[str, tuple[type[Asked], Task]] = {}


def version() -> str:
    """Of the installed package."""
    try:
        return _installed("tokenfold")
    except PackageNotFoundError:
        return "0"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its `responses`."""
    return {
        status: {
            "description": _PROBLEMS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status == 503 else {}),
        }
        for status in statuses
    }


_RETRY_AFTER = {
    "description": "Seconds until it is worth trying again, from the queue's cost.",
    "schema": {"type": "integer", "minimum": 1},
}
_SERVER_TIMING = {
    "description": "Milliseconds of the slowest item in each stage, and the largest batch.",
    "schema": {"type": "string"},
    "example": 'decode;dur=1.9, queue;dur=0.1, infer;dur=20.4, post;dur=0.1, batch;desc="1"',
}


def inference(
    request: type[Asked], task: Task, *, asked: dict[str, Any], example: dict[str, Any]
) -> dict[str, Any]:
    """What to pass to the decorator of a route that reads `request` with `body.read`.

    Args:
        asked: further fields of an example of a request.
        example: an answer.
    """
    least = request.model_json_schema()["properties"]["image"]["minItems"]
    images = _sample() if least == 1 else [_sample()] * least
    _REQUESTS[request.__name__] = (request, task)
    return {
        "responses": {
            200: {
                "headers": {"Server-Timing": _SERVER_TIMING},
                "content": {"application/json": {"example": example}},
            },
            **problems(*_PROBLEMS),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {"$ref": f"{_REF}{request.__name__}Form"},
                        "encoding": {"image": {"contentType": "image/jpeg, image/png, image/webp"}},
                    },
                    "application/json": {
                        "schema": {"$ref": _REF + request.__name__},
                        "examples": {
                            "reduced": {
                                "summary": "Half of the FLOPs removed",
                                "value": {"image": images, "reduction": 0.5, **asked},
                            }
                        },
                    },
                },
            }
        },
    }


def install(app: FastAPI, engine: Engine) -> None:
    """Make `app.openapi` describe what this server serves."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, summary=app.summary, version=app.version, routes=app.routes
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template=_REF + "{model}")
            # It refers to itself: its own description is then among the definitions.
            schemas |= {"Problem": problem, **problem.pop("$defs", {})}
            for name, (request, task) in _REQUESTS.items():
                schemas[name] = _schema(request, task, engine, form=False)
                schemas[name + "Form"] = _schema(request, task, engine, form=True)
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _schema(request: type[Asked], task: Task, engine: Engine, *, form: bool) -> dict[str, Any]:
    schema = deepcopy(request.model_json_schema(ref_template=_REF + "{model}"))
    properties = schema["properties"]
    for found in properties.values():
        _without_null(found)
    able = [model for model in engine.catalog if task in model.tasks]
    if able:  # else every name is refused, which an empty list of names could not say
        properties["model"]["enum"] = [model.name for model in able]
        levels = dict.fromkeys(level for model in able for level in model.levels.levels)
        properties["level"]["enum"] = list(levels)
    most = engine.settings.max_items
    for name, kind in repeated(request).items():
        if kind != "names":
            of = _TEXT if kind == "texts" else _FILE if form else _BASE64
            properties[name] = _one_or_more(of, properties[name], most=most, form=form)
    schema["not"] = {
        "anyOf": [{"required": list(pair)} for pair in combinations(Selector._fields, 2)]
    }
    return schema


_TEXT = {"type": "string", "minLength": 1, "maxLength": LONGEST, "pattern": r"\S"}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_BASE64 = {"type": "string", "format": "byte", "contentEncoding": "base64", "minLength": 1}


def _one_or_more(
    of: dict[str, Any], given: dict[str, Any], *, most: int, form: bool
) -> dict[str, Any]:
    """A field that may be repeated: in a form by itself, in JSON one value or a list."""
    least = given["minItems"]
    several = {"type": "array", "items": of, "minItems": least, "maxItems": most}
    found = several if form or least > 1 else {"anyOf": [of, several]}
    return found | {"description": given["description"]}


def _without_null(found: dict[str, Any]) -> None:
    # A field that may be left out, but is never null.
    variants = [one for one in found.get("anyOf", []) if one != {"type": "null"}]
    if len(variants) == 1:
        del found["anyOf"]
        found |= variants[0]
    if "default" in found and found["default"] is None:
        del found["default"]


def _sample() -> str:
    """A small image, in base64."""
    ramp = Image.linear_gradient("L").resize((8, 8)).convert("RGB")
    file = io.BytesIO()
    ramp.save(file, "PNG")
    return b64encode(file.getvalue()).decode()
