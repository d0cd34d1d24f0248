"""Tests of the OpenAPI document: complete, correct, and checked by schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.service import standin
from tests.service.standin import Remote, bundle, serving
from tests.service.standin_dual import dual_bundle
from tests.service.standin_pairs import BOUNDED, pair_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.inference.errors import UnknownLevel
from tokenfold.inference.levels import Levels, Selector
from tokenfold.inference.texts import MAX_CHARACTERS
from tokenfold.service.api.schemas.embed import EmbedRequest, EmbedResponse
from tokenfold.service.api.schemas.inference import MAX_LABELS, ClassifyRequest, ClassifyResponse
from tokenfold.service.api.schemas.pairs import (
    EntailRequest,
    EntailResponse,
    MatchRequest,
    MatchResponse,
    ReasonRequest,
    ReasonResponse,
    VqaRequest,
    VqaResponse,
)
from tokenfold.service.app import create_app
from tokenfold.service.settings import DEMO

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    bundle(root / "b", name="plain", profile=False)
    pair_bundle(root / "c")
    pair_bundle(root / "d", name="matcher", tasks=["match"], preprocess=BOUNDED)
    dual_bundle(root / "e")
    with serving(create_app(standin.settings(root, max_items=4))) as remote:
        yield remote


@pytest.fixture(scope="module")
def document(client: Remote) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def test_every_operation_has_an_id_a_summary_and_a_description(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(
        operation["summary"] and operation["description"] for operation in operations(document)
    )


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], status
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_models_and_levels_are_enumerated(document: dict[str, Any]) -> None:
    served = {
        "Classify": ["colours", "plain", "dual"],  # with labels
        "Embed": ["dual"],
        "Vqa": ["pairs"],
        "Match": ["pairs", "matcher"],
    }
    for task, names in served.items():
        for name in (f"{task}Request", f"{task}RequestForm"):
            properties = document["components"]["schemas"][name]["properties"]
            assert properties["model"]["enum"] == names
            assert properties["level"]["enum"] == ["exact", "balanced", "fast"]


@pytest.mark.parametrize(
    ("task", "request_model", "response_model"),
    [
        ("classify", ClassifyRequest, ClassifyResponse),
        ("embed", EmbedRequest, EmbedResponse),
        ("vqa", VqaRequest, VqaResponse),
        ("entail", EntailRequest, EntailResponse),
        ("reason", ReasonRequest, ReasonResponse),
        ("match", MatchRequest, MatchResponse),
    ],
)
def test_the_examples_are_valid(
    document: dict[str, Any],
    client: Remote,
    task: str,
    request_model: type[BaseModel],
    response_model: type[BaseModel],
) -> None:
    operation = document["paths"][f"/v1/{task}"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        request_model.model_validate(example["value"])
        response = client.post(f"/v1/{task}", json=example["value"])
        assert response.status_code == 200
        response_model.model_validate(response.json())
    answer = operation["responses"]["200"]["content"]["application/json"]["example"]
    response_model.model_validate(answer)


def test_limits_of_texts_and_images_are_documented(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    text = schemas["VqaRequest"]["properties"]["question"]["anyOf"]
    assert text[0]["maxLength"] == MAX_CHARACTERS
    assert text[1]["maxItems"] == 4
    assert schemas["ReasonRequestForm"]["properties"]["image"]["minItems"] == 2
    assert schemas["ReasonRequest"]["required"] == ["image", "statement"]
    for form in ("", "Form"):
        assert schemas["EmbedRequest" + form]["oneOf"] == [
            {"required": ["image"]}, {"required": ["text"]}
        ]  # fmt: skip
    assert schemas["ClassifyRequestForm"]["properties"]["labels"]["maxItems"] == MAX_LABELS


def test_the_example_of_classify_has_the_costs_of_the_demo_model(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/classify"]["post"]["responses"]["200"]["content"]
    answer = content["application/json"]["example"]
    reduction = answer["results"][0]["reduction"]
    levels = Levels(Bundle.open(DEMO / answer["model"]).manifest, None)
    choice = levels.choose(Selector(reduction["level"]), "classify")
    assert reduction["requested"] == choice.requested
    assert reduction["flops_ratio"] == round(choice.work.ratio, 6)
    assert reduction["tokens_in"] == choice.work.tokens_in
    assert reduction["tokens_out"] == choice.work.tokens_out
    (problem,) = document["components"]["schemas"]["Problem"]["examples"]
    with pytest.raises(UnknownLevel) as caught:
        levels.choose(Selector("turbo"), "classify")
    assert problem["detail"] == caught.value.detail


@pytest.mark.parametrize(
    ("task", "pairs"), [("vqa", 1), ("entail", 1), ("reason", 2), ("match", 2)]
)
def test_the_examples_of_pairs_have_the_costs_of_the_demo_model(
    document: dict[str, Any], task: str, pairs: int
) -> None:
    content = document["paths"][f"/v1/{task}"]["post"]["responses"]["200"]["content"]
    answer = content["application/json"]["example"]
    result = answer["results"][0]
    manifest = Bundle.open(DEMO / answer["model"]).manifest
    workload = manifest.workload
    assert isinstance(workload, PairWorkload)
    sized = workload.sized(text=result.get("text", {"tokens": 8})["tokens"])
    level = manifest.levels[result["reduction"]["level"]]
    plan = manifest.plan(level, text=sized.text, image=sized.image)
    assert result["reduction"]["flops_ratio"] == pytest.approx(flops_ratio(sized, plan), abs=0.005)
    assert result["reduction"]["tokens_in"] == pairs * sized.tokens
    assert result["reduction"]["tokens_out"] == pairs * sized.widths(plan)[-1]


def test_the_documentation_page_is_served(client: Remote) -> None:
    assert client.get("/docs").status_code == 200


# The schema cannot describe which counts of images and texts can be paired, which texts a tokenizer
# reduces to nothing, and which models take labels.
CONFIGURATION = """
# A missing image in a new gallery does not mean that the gallery is missing.
[checks]
ensure_resource_availability.enabled = false

[[operations]]
include-operation-id = ["classify", "answerQuestions", "entail", "reason", "match"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422", "503"]

[[operations]]
include-operation-id = ["embed"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422", "503"]
# In a form a number is a text.
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]

# Random names are unknown galleries and images. In a form a single value is a list, too.
[[operations]]
include-tag = ["galleries"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422", "503"]
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
"""


def test_schemathesis_finds_no_failures(
    document: dict[str, Any], client: Remote, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", client.url + "/openapi.json"),
            *("--checks=all", "--max-examples=40", "--generation-deterministic", "--no-color"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.service.api.schemathesis_hooks",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    operations = sum(len(methods) for methods in document["paths"].values())
    assert f"{operations} selected / {operations} total" in completed.stdout
