"""The OpenAPI document: complete, true, and found to be so by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle
from service.app import create_app
from service.errors import UnknownLevel
from service.levels import Levels, Selector
from service.schemas import ClassifyRequest, ClassifyResponse
from service.settings import DEMO
from tests.service import standin
from tests.service.standin import Remote, bundle, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    bundle(root / "b", name="plain", profile=False)
    with serving(create_app(standin.settings(root, max_items=4))) as remote:
        yield remote


@pytest.fixture(scope="module")
def document(client: Remote) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def test_every_operation_has_an_id_and_says_what_it_does(document: dict[str, Any]) -> None:
    names = [found["operationId"] for found in operations(document)]
    assert len(names) == len(set(names))
    assert all(found["summary"] and found["description"] for found in operations(document))


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                assert list(response["content"]) == ["application/problem+json"], status
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_models_and_levels_are_the_served_ones(document: dict[str, Any]) -> None:
    for name in ("ClassifyRequest", "ClassifyRequestForm"):
        properties = document["components"]["schemas"][name]["properties"]
        assert properties["model"]["enum"] == ["colours", "plain"]
        assert properties["level"]["enum"] == ["exact", "balanced", "fast"]


def test_the_examples_are_good(document: dict[str, Any], client: Remote) -> None:
    classify = document["paths"]["/v1/classify"]["post"]
    examples = classify["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        ClassifyRequest.model_validate(example["value"])
        assert client.post("/v1/classify", json=example["value"]).status_code == 200
    answer = classify["responses"]["200"]["content"]["application/json"]["example"]
    ClassifyResponse.model_validate(answer)


def test_the_example_is_what_the_demo_model_answers(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/classify"]["post"]["responses"]["200"]["content"]
    answer = content["application/json"]["example"]
    reduction = answer["results"][0]["reduction"]
    levels = Levels(Bundle.open(DEMO / answer["model"]).manifest, None, None)  # type: ignore[arg-type]
    choice = levels.choose(Selector(reduction["level"]), "classify")
    assert reduction["requested"] == choice.requested
    assert reduction["flops_ratio"] == round(choice.work.ratio, 6)
    assert reduction["tokens_in"] == choice.work.tokens_in
    assert reduction["tokens_out"] == choice.work.tokens_out
    (problem,) = document["components"]["schemas"]["Problem"]["examples"]
    with pytest.raises(UnknownLevel) as caught:
        levels.choose(Selector("turbo"), "classify")
    assert problem["detail"] == caught.value.detail


def test_the_documentation_page(client: Remote) -> None:
    assert client.get("/docs").status_code == 200


def test_schemathesis_finds_nothing(client: Remote, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", client.url + "/openapi.json"),
            *("--checks=all", "--max-examples=40", "--generation-deterministic", "--no-color"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.service.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 selected / 7 total" in done.stdout
