"""The OpenAPI document: request bodies and errors, which FastAPI cannot derive from the routes.

The routes read their bodies themselves. One pydantic model describes a form and JSON; here it
becomes a schema for each, with the names of the served models and levels.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Collection
from copy import deepcopy
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed
from itertools import combinations
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from PIL import Image
from pydantic import BaseModel

from tokenfold.bundle.tasks import Task
from tokenfold.inference.levels import Selector
from tokenfold.inference.texts import MAX_CHARACTERS
from tokenfold.service.api.body import repeated
from tokenfold.service.api.problems import MEDIA_TYPE, Problem
from tokenfold.service.api.schemas.inference import InferenceBody
from tokenfold.service.core import Core

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
_GALLERY_PROBLEMS = _PROBLEMS | {
    404: "Unknown gallery, image or model",
    409: "Another model's gallery, one that exists already, or no level meets the budget",
    507: "The disk is full",
}
# Statuses of every route that reads a body.
_BODY_STATUSES = (400, 408, 413, 415, 422, 431, 503)

_REQUESTS: dict[str, tuple[type[BaseModel], tuple[Task, ...]]] = {}


def version() -> str:
    """Return the version of the installed package."""
    try:
        return _installed("tokenfold")
    except PackageNotFoundError:
        return "0"


def problems(*statuses: int, galleries: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route, for its `responses`."""
    descriptions = _GALLERY_PROBLEMS if galleries else _PROBLEMS
    return {
        status: {
            "description": descriptions[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status == 503 else {}),
        }
        for status in statuses
    }


_RETRY_AFTER = {
    "description": "Seconds until it is worth trying again, from the queue's cost.",
    "schema": {"type": "integer", "minimum": 1},
}
_PICTURES = {"image": {"contentType": "image/jpeg, image/png, image/webp"}}
_SERVER_TIMING = {
    "description": "Milliseconds of the slowest item in each stage, and the largest batch.",
    "schema": {"type": "string"},
    "example": 'decode;dur=1.9, queue;dur=0.1, infer;dur=20.4, post;dur=0.1, batch;desc="1"',
}


def inference(
    request: type[InferenceBody], *tasks: Task, fields: dict[str, Any], example: dict[str, Any]
) -> dict[str, Any]:
    """Return the decorator arguments of an inference route, which reads its body with `body.read`.

    Args:
        request: the body.
        tasks: tasks of the models that answer it.
        fields: fields of the example request, beside `image` and `reduction`.
        example: an example answer.
    """
    min_images = request.model_json_schema()["properties"]["image"]["minItems"]
    images = _sample() if min_images == 1 else [_sample()] * min_images
    _REQUESTS[request.__name__] = (request, tasks)
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
                        "encoding": _PICTURES,
                    },
                    "application/json": {
                        "schema": {"$ref": _REF + request.__name__},
                        "examples": {
                            "reduced": {
                                "summary": "Half of the FLOPs removed",
                                "value": {"image": images, "reduction": 0.5, **fields},
                            }
                        },
                    },
                },
            }
        },
    }


def accepting(
    request: type[BaseModel],
    *,
    fields: dict[str, Any],
    example: dict[str, Any],
    status: int = 200,
    statuses: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return the decorator arguments of a gallery route, which reads its body with `body.read`.

    Args:
        request: the body.
        fields: fields of the example request; a required `image` is added.
        example: an example answer.
        status: status of the answer.
        statuses: statuses of errors, beside those of every body.
    """
    _REQUESTS[request.__name__] = (request, ("embed",))
    images = "image" in request.model_fields
    if images and request.model_fields["image"].is_required():
        fields = {"image": _sample(), **fields}
    encoding = {"encoding": _PICTURES} if images else {}
    return {
        "responses": {
            status: {"content": {"application/json": {"example": example}}},
            **problems(*sorted({*_BODY_STATUSES, *statuses}), galleries=True),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {"$ref": f"{_REF}{request.__name__}Form"},
                        **encoding,
                    },
                    "application/json": {
                        "schema": {"$ref": _REF + request.__name__},
                        "examples": {"usual": {"summary": "Such as", "value": fields}},
                    },
                },
            }
        },
    }


def install(app: FastAPI, core: Core) -> None:
    """Make `app.openapi` describe the models of this server."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, summary=app.summary, version=app.version, routes=app.routes
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template=_REF + "{model}")
            # It refers to itself, so its schema is among its own definitions.
            schemas |= {"Problem": problem, **problem.pop("$defs", {})}
            for name, (request, tasks) in _REQUESTS.items():
                schemas[name] = _schema(request, tasks, core, form=False)
                schemas[name + "Form"] = _schema(request, tasks, core, form=True)
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _schema(
    request: type[BaseModel], tasks: Collection[Task], core: Core, *, form: bool
) -> dict[str, Any]:
    schema = deepcopy(request.model_json_schema(ref_template=_REF + "{model}"))
    properties = schema["properties"]
    for field in properties.values():
        _remove_null(field)
    able = [model for model in core.catalog if not model.tasks.keys().isdisjoint(tasks)]
    levels = dict.fromkeys(level for model in able for level in model.levels.levels)
    # Without a model every name is refused, which an empty enum could not express.
    for name, known in (("model", [model.name for model in able]), ("level", list(levels))):
        if name in properties and known:
            properties[name]["enum"] = known
    for name, kind in repeated(request).items():
        if kind != "names":
            field = properties[name]
            item = (_FILE if form else _BASE64) if kind == "files" else _text(field["items"], form)
            max_items = field.get("maxItems", core.settings.max_items)
            properties[name] = _one_or_more(item, field, max_items=max_items, form=form)
    for field in properties.values():
        if form and field.get("type") == "object":
            field |= _JSON_TEXT
            del field["additionalProperties"]
    if "rerank" in properties:
        properties["rerank"]["maximum"] = core.settings.max_rerank
        # The level may also be one of the re-ranking model.
        properties["level"].pop("enum", None)
    selectors = [name for name in Selector._fields if name in properties]
    if len(selectors) > 1:
        schema["not"] = {"anyOf": [{"required": list(two)} for two in combinations(selectors, 2)]}
    return schema


def _text(items: dict[str, Any], form: bool) -> dict[str, Any]:
    """Return the schema of a text in a field that may be repeated: a text, a name or an object."""
    if "anyOf" in items:
        return _JSON_TEXT if form else _OBJECT
    return items if "pattern" in items else _TEXT


_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": r"\S"}
_OBJECT = {"type": "object", "additionalProperties": True}
_JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_BASE64 = {"type": "string", "format": "byte", "contentEncoding": "base64", "minLength": 1}


def _one_or_more(
    item: dict[str, Any], field: dict[str, Any], *, max_items: int, form: bool
) -> dict[str, Any]:
    """Return the schema of a field that may be repeated; in JSON it is a value or a list."""
    min_items = field.get("minItems", 1)
    items = {"type": "array", "items": item, "minItems": min_items, "maxItems": max_items}
    repeated_field = items if form or min_items > 1 else {"anyOf": [item, items]}
    return repeated_field | {"description": field["description"]}


def _remove_null(field: dict[str, Any]) -> None:
    # The field may be left out, but must not be null.
    variants = [variant for variant in field.get("anyOf", []) if variant != {"type": "null"}]
    if len(variants) == 1:
        del field["anyOf"]
        field |= variants[0]
    if "default" in field and field["default"] is None:
        del field["default"]


def _sample() -> str:
    """Return a small image as base64."""
    ramp = Image.linear_gradient("L").resize((8, 8)).convert("RGB")
    file = io.BytesIO()
    ramp.save(file, "PNG")
    return b64encode(file.getvalue()).decode()
