"""Tests of the routes of image-text pairs: /v1/vqa, /v1/entail, /v1/reason and /v1/match."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from tests.service import standin
from tests.service.gated import Gated
from tests.service.standin import Remote, bundle, encoded, picture, problem, serving, until
from tests.service.standin_pairs import BOUNDED, MOST_TOKENS, WORKLOAD, pair_bundle
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.inference.texts import MAX_CHARACTERS
from tokenfold.service.api.schemas.pairs import (
    EntailResponse,
    MatchResponse,
    ReasonResponse,
    VqaResponse,
)
from tokenfold.service.app import create_app

RED, GREEN, BLUE = picture("red"), picture("lime"), picture("blue")
RESPONSES: dict[str, type[BaseModel]] = {
    "vqa": VqaResponse, "entail": EntailResponse, "reason": ReasonResponse, "match": MatchResponse
}  # fmt: skip
TEXTS = {"vqa": "question", "entail": "hypothesis", "reason": "statement", "match": "text"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    pair_bundle(root / "b")
    pair_bundle(root / "c", name="bounded", preprocess=BOUNDED)
    pair_bundle(root / "d", name="matcher", tasks=["match"])
    return root


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[Remote]:
    with serving(create_app(standin.settings(bundles, max_items=8, max_pairs=20))) as remote:
        yield remote


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    task = response.request.url.path.rpartition("/")[2]
    RESPONSES[task].model_validate_json(response.content)
    listed: list[dict[str, Any]] = response.json()["results"]
    return listed


def texts(task: str, values: Any) -> dict[str, Any]:
    """Return texts in the field of a task."""
    return {TEXTS[task]: values}


def images_of(task: str) -> list[bytes]:
    return [RED, BLUE] if task == "reason" else [RED]


class TestAnswers:
    def test_vqa_returns_the_best_answers(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", BLUE, question="What colour is it?", top_k=2))
        assert [answer["answer"] for answer in result["answers"]] == ["blue", "red"]
        assert [answer["index"] for answer in result["answers"]] == [2, 0]
        assert 0.99 < result["answers"][0]["score"] <= 1
        assert result["text"] == {"tokens": 7, "cut": False}
        assert result["reduction"] == {
            "method": "pumer",
            "level": "exact",
            "requested": 0.0,
            "flops_ratio": 1.0,
            "tokens_in": 7 + 17,
            "tokens_out": 7 + 17,
        }
        assert result["batch_size"] == 1
        assert set(result["timings_ms"]) == {"decode", "queue", "infer", "post"}
        assert min(result["timings_ms"].values()) >= 0
        assert "slots" not in result

    def test_commas_are_part_of_a_text(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", BLUE, question="is it, or not, blue"))
        assert result["text"]["tokens"] == 9
        assert result["answers"][-1]["answer"] == "blue"

    def test_entail_returns_a_label_and_scores(self, client: Remote) -> None:
        names = ["it is blue", "it is red", "not"]
        answers = results(client.ask("entail", BLUE, hypothesis=names))
        assert [result["label"] for result in answers[:2]] == ["entailment", "contradiction"]
        assert list(answers[0]["scores"]) == ["entailment", "neutral", "contradiction"]
        assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert answers[2]["scores"]["neutral"] == pytest.approx(1 / 3, abs=1e-5)

    def test_reason_returns_a_truth_value(self, client: Remote) -> None:
        answers = results(client.ask("reason", RED, BLUE, statement=["red left", "blue left"]))
        assert [result["answer"] for result in answers] == [True, False]
        assert answers[0]["score"] > 0.99 > 0.01 > answers[1]["score"]
        assert answers[0]["reduction"]["tokens_in"] == 2 * (4 + 17)
        (swapped,) = results(client.ask("reason", BLUE, RED, statement="red left"))
        assert swapped["answer"] is False

    def test_match_returns_a_score_matrix(self, client: Remote) -> None:
        texts = ["red", "it is the colour blue", "green"]
        response = client.ask("match", RED, BLUE, text=texts)
        answers = results(response)
        assert response.json()["texts"] == [{"tokens": n, "cut": False} for n in (3, 7, 3)]
        scores = np.array([row["scores"] for row in answers])
        assert (scores > 0.5).tolist() == [[True, False, False], [False, True, False]]
        assert answers[0]["reduction"]["tokens_in"] == 3 * 17 + 3 + 7 + 3

    def test_json_is_answered_like_a_form(self, client: Remote) -> None:
        image = base64.b64encode(BLUE).decode()
        for question in ("what", ["what"]):
            body = {"image": image, "question": question, "top_k": 1, "level": "fast"}
            (result,) = results(client.post("/v1/vqa", json=body))
            assert result["answers"][0]["answer"] == "blue"
            assert result["reduction"]["level"] == "fast"
        body = {"image": [image, f"data:image/png;base64,{image}"], "text": ["red", "blue"]}
        assert len(results(client.post("/v1/match", json=body))) == 2

    def test_images_and_texts_are_paired_or_reused(self, client: Remote) -> None:
        def first(response: httpx.Response) -> list[str]:
            return [result["answers"][0]["answer"] for result in results(response)]

        words = ["what", "what colour", "it"]
        assert first(client.ask("vqa", RED, BLUE, GREEN, question=words)) == [
            *("red", "blue", "green")
        ]
        assert first(client.ask("vqa", RED, BLUE, question="what")) == ["red", "blue"]
        answers = results(client.ask("vqa", RED, question=words))
        assert [result["text"]["tokens"] for result in answers] == [3, 4, 3]
        two_pairs = client.ask("reason", RED, BLUE, BLUE, RED, statement=["red", "red"])
        assert [result["answer"] for result in results(two_pairs)] == [True, False]
        for_all = client.ask("reason", RED, BLUE, BLUE, RED, statement="red")
        assert [result["answer"] for result in results(for_all)] == [True, False]

    def test_a_long_text_is_cut_and_reported(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", RED, question="what is it " * 20, include="slots"))
        assert result["text"]["tokens"] == MOST_TOKENS
        assert result["text"]["cut"] is True
        assert result["text"]["pieces"][0] == "[CLS]"
        assert result["text"]["pieces"][-1] == "[SEP]"

    def test_slots_are_included_on_request(self, client: Remote) -> None:
        (result,) = results(
            client.ask("vqa", RED, question="what colour is it", include="slots", reduction=0.4)
        )
        text, (slots,) = result["text"], result["slots"]
        assert text["pieces"] == ["[CLS]", "what", "colour", "is", "it", "[SEP]"]
        assert len(slots["text_slots"]) == 6
        assert len(slots["image_slots"]) == 17
        assert slots["grid"] == [4, 4]
        assert slots["protected"] == 1
        kept = set(slots["text_slots"]) | set(slots["image_slots"]) - {-1}
        assert len(kept) == result["reduction"]["tokens_out"]
        assert -1 in slots["image_slots"]
        (result,) = results(client.ask("reason", RED, BLUE, statement="red", include="slots"))
        assert len(result["slots"]) == 2
        response = client.ask("match", RED, BLUE, text=["red", "it is blue"], include="slots")
        views = [row["slots"] for row in results(response)]
        assert [[len(view["text_slots"]) for view in row] for row in views] == [[3, 5], [3, 5]]
        assert response.json()["texts"][0]["pieces"] == ["[CLS]", "red", "[SEP]"]

    @pytest.mark.parametrize("task", list(TEXTS))
    def test_every_selector_selects_a_level(self, client: Remote, task: str) -> None:
        for fields, level in (
            ({"level": "fast"}, "fast"),
            ({"reduction": 0.5}, "fast"),
            ({"reduction": 0.123}, "custom"),
            ({"max_latency_ms": 10_000}, "exact"),
        ):
            request = texts(task, "red") | fields
            (result,) = results(client.ask(task, *images_of(task), **request))
            assert result["reduction"]["level"] == level

    def test_min_accuracy_uses_the_accuracy_of_the_task(self, client: Remote) -> None:
        # The fastest level that reaches it; which one depends on measured durations.
        (result,) = results(client.ask("vqa", RED, question="what", min_accuracy=0.85))
        assert result["reduction"]["level"] in ("balanced", "exact")
        (result,) = results(client.ask("entail", RED, hypothesis="what", min_accuracy=0.79))
        assert result["reduction"]["level"] in ("fast", "balanced", "exact")
        detail = problem(
            client.ask("entail", RED, hypothesis="what", min_accuracy=0.85), 409, "accuracy-budget"
        )
        assert "0.8000" in detail
        refused = client.ask("match", RED, text="red", min_accuracy=0.1)
        problem(refused, 409, "no-accuracy-profile")

    def test_each_item_has_the_plan_of_its_text_length(self, client: Remote) -> None:
        words = ["what", "what colour is it", "the colour is what is it the left"]
        answers = results(client.ask("vqa", RED, question=words, reduction=0.4))
        for result in answers:
            text = result["text"]["tokens"]
            sized = WORKLOAD.sized(text=text)
            plan = plan_for(sized, 0.4)
            assert result["reduction"]["flops_ratio"] == pytest.approx(
                flops_ratio(sized, plan), abs=1e-6
            )
            assert result["reduction"]["tokens_in"] == text + 17
            assert result["reduction"]["tokens_out"] == sized.widths(plan)[-1]

    def test_images_of_different_shapes(self, client: Remote) -> None:
        def ask(width: int, height: int) -> dict[str, Any]:
            image = encoded(Image.new("RGB", (width, height), "red"))
            (result,) = results(
                client.ask(
                    "vqa", image, question="what", model="bounded", include="slots", level="fast"
                )
            )
            return result

        for size, grid in (((16, 16), [4, 4]), ((64, 32), [4, 8]), ((30, 300), [8, 1])):
            result = ask(*size)
            (slots,) = result["slots"]
            assert slots["grid"] == grid
            assert len(slots["image_slots"]) == 1 + grid[0] * grid[1]
            sized = WORKLOAD.sized(text=3, image=1 + grid[0] * grid[1])
            assert result["reduction"]["tokens_in"] == sized.tokens
            assert result["reduction"]["tokens_out"] == sized.widths(plan_for(sized, 0.5))[-1]
        both = client.ask(
            "reason",
            picture("red", (64, 32)),
            picture("blue", (16, 16)),
            statement="red",
            model="bounded",
            include="slots",
        )
        (result,) = results(both)
        assert [slots["grid"] for slots in result["slots"]] == [[4, 8], [4, 4]]
        assert result["answer"] is True

    def test_the_model_is_the_first_with_the_task_or_the_selected_one(self, client: Remote) -> None:
        assert client.ask("vqa", RED, question="what").json()["model"] == "pairs"
        assert client.ask("match", RED, text="red", model="matcher").json()["model"] == "matcher"
        detail = problem(
            client.ask("vqa", RED, question="what", model="matcher"), 404, "unknown-model"
        )
        assert "pairs, bounded" in detail
        problem(client.ask("vqa", RED, question="what", model="colours"), 404, "unknown-model")
        problem(client.classify(RED, model="pairs"), 404, "unknown-model")

    def test_models_are_listed_with_their_texts(self, client: Remote) -> None:
        listed = client.get("/v1/models").json()
        assert listed["default"] == {
            "classify": "colours", "vqa": "pairs", "entail": "pairs", "reason": "pairs",
            "match": "pairs",
        }  # fmt: skip
        model = client.get("/v1/models/pairs").json()
        assert model["text"] == {"most_tokens": MOST_TOKENS, "most_characters": MAX_CHARACTERS}
        counts = {task["name"]: task["label_count"] for task in model["tasks"]}
        assert counts == {"vqa": 3, "entail": 3, "reason": 2, "match": 0}
        assert model["levels"][0]["quality"]["reason"]["value"] == 0.7
        assert model["grid"] == [4, 4]
        assert model["weights_bytes"] > 1000


class TestBadTexts:
    @pytest.mark.parametrize("task", list(TEXTS))
    @pytest.mark.parametrize("text", ["", "   ", "\t\n\u3000"])
    def test_blank_texts_are_refused(self, client: Remote, task: str, text: str) -> None:
        field = TEXTS[task]
        detail = problem(
            client.ask(task, *images_of(task), **texts(task, text)), 422, "invalid-request"
        )
        assert f"{field}.0: is empty" in detail
        images = [base64.b64encode(image).decode() for image in images_of(task)]
        body = {"image": images, field: ["red", text]}
        detail = problem(client.post(f"/v1/{task}", json=body), 422, "invalid-request")
        assert f"{field}.1: is empty" in detail

    @pytest.mark.parametrize("text", ["\u200b", "\u200d\u200c "])
    def test_texts_without_tokens_are_refused(self, client: Remote, text: str) -> None:
        # Python does not strip these characters, but the tokenizer does.
        response = client.ask("vqa", RED, question=text)
        assert "question.0: is empty" in problem(response, 422, "invalid-request")

    @pytest.mark.parametrize("text", ["a\x00b", "\x1b[0m", "red\x85", "\x7f"])
    def test_control_characters_are_refused(self, client: Remote, text: str) -> None:
        response = client.post(
            "/v1/vqa", json={"image": base64.b64encode(RED).decode(), "question": text}
        )
        detail = problem(response, 422, "invalid-request")
        assert "question.0: contains the unreadable character U+" in detail
        assert text not in response.text

    def test_half_a_surrogate_pair_is_refused(self, client: Remote) -> None:
        body = json.dumps({"image": base64.b64encode(RED).decode(), "question": "\ud800"})
        response = client.post(
            "/v1/vqa", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 422)

    def test_line_breaks_count_as_spaces(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", RED, question="what\r\n\tcolour"))
        assert result["text"]["tokens"] == 4

    @pytest.mark.parametrize("length", [MAX_CHARACTERS + 1, 1_000_000])
    def test_long_texts_are_refused_at_once(self, client: Remote, length: int) -> None:
        begun = time.perf_counter()
        body = {"image": base64.b64encode(RED).decode(), "question": "a " * (length // 2 + 1)}
        response = client.post("/v1/vqa", json=body)
        assert f"at most {MAX_CHARACTERS}" in problem(response, 422, "invalid-request")
        response = client.ask("vqa", RED, question="a" * length)
        assert "question" in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000
        assert time.perf_counter() - begun < 2

    def test_texts_of_the_maximum_length_are_accepted(self, client: Remote) -> None:
        texts = ["red " * (MAX_CHARACTERS // 4)] * 8
        answers = results(client.ask("vqa", RED, question=texts))
        assert all(result["text"]["cut"] for result in answers)

    def test_missing_texts_are_refused(self, client: Remote) -> None:
        assert "question" in problem(client.ask("vqa", RED), 422, "invalid-request")
        image = base64.b64encode(RED).decode()
        for wrong in ([], None, 3, [None], [["red"]], {"a": "b"}):
            response = client.post("/v1/vqa", json={"image": image, "question": wrong})
            assert "question" in problem(response, 422, "invalid-request")

    def test_a_file_in_the_place_of_a_text_is_refused(self, client: Remote) -> None:
        files = {"image": ("a.png", RED), "question": ("q.txt", b"what")}
        response = client.post("/v1/vqa", files=files)
        assert "question: must be text, not a file" in problem(response, 422, "invalid-request")

    def test_text_that_is_not_utf_8_is_refused(self, client: Remote) -> None:
        content = (
            b'--X\r\ncontent-disposition: form-data; name="question"\r\n\r\n\xff\xfe\r\n--X--\r\n'
        )
        kind = {"content-type": "multipart/form-data; boundary=X"}
        response = client.post("/v1/vqa", content=content, headers=kind)
        assert "question: is not UTF-8" in problem(response, 422, "invalid-request")


class TestCounts:
    def test_counts_that_cannot_be_paired_are_refused(self, client: Remote) -> None:
        detail = problem(
            client.ask("vqa", RED, RED, RED, question=["what", "it"]), 422, "invalid-request"
        )
        assert "3 of image and 2 of question" in detail
        assert "as many of both, or one question for all images, or one image for every" in detail
        detail = problem(client.ask("reason", RED, statement="red"), 422, "invalid-request")
        assert detail == "image: at least 2 needed, not 1"
        for images, statements in ((3, 1), (4, 3)):
            response = client.ask("reason", *[RED] * images, statement=["red"] * statements)
            detail = problem(response, 422, "invalid-request")
            assert "send 2 images for each statement" in detail
            assert detail.endswith("or 2 images for every statement.")

    def test_the_number_of_images_and_texts_is_limited(self, client: Remote) -> None:
        detail = problem(client.ask("vqa", RED, question=["what"] * 9), 422, "invalid-request")
        assert "at most 8 texts" in detail
        detail = problem(client.ask("vqa", *[RED] * 9, question="what"), 422, "invalid-request")
        assert "at most 8 images" in detail
        body = {"image": base64.b64encode(RED).decode(), "question": ["what"] * 5000}
        detail = problem(client.post("/v1/vqa", json=body), 422, "invalid-request")
        assert "more than 1024" in detail

    def test_fields_of_another_task_are_refused(self, client: Remote) -> None:
        response = client.ask("vqa", RED, question="what", statement="red")
        detail = problem(response, 422, "invalid-request")
        assert detail.startswith("statement: unknown field; known: model, level, ")
        assert detail.endswith("image, question, top_k")

    def test_json_that_is_not_an_object_is_refused(self, client: Remote) -> None:
        detail = problem(client.post("/v1/vqa", json=["what"]), 422, "invalid-request")
        assert detail == "The body is JSON, but not an object."

    def test_the_number_of_pairs_is_limited(self, client: Remote) -> None:
        detail = problem(client.ask("match", *[RED] * 5, text=["red"] * 5), 422, "invalid-request")
        assert "25 pairs" in detail
        assert "at most 20" in detail
        assert len(results(client.ask("match", *[RED] * 4, text=["red"] * 5))) == 4

    def test_requests_with_more_runs_than_the_queue_holds_are_refused(self, bundles: Path) -> None:
        with serving(create_app(standin.settings(bundles, queue_limit=5, max_items=5))) as remote:
            detail = problem(
                remote.ask("match", RED, BLUE, text=["red"] * 2), 422, "invalid-request"
            )
            assert "6 runs" in detail
            assert results(remote.ask("match", RED, text=["red"] * 2))


class TestBadImages:
    @pytest.mark.parametrize("task", list(TEXTS))
    def test_a_bad_image_is_refused(self, client: Remote, task: str) -> None:
        images = [b"bad", RED] if task == "reason" else [b"bad"]
        for words in (["red"], ["red", "blue"]):
            response = client.ask(task, *images, **texts(task, words))
            problem(response, 415, "image-format")
            if len(words) > 1 and task != "match":
                assert len(response.json()["results"]) == 2

    def test_a_bad_image_does_not_fail_the_others(self, client: Remote) -> None:
        answers = results(client.ask("vqa", RED, b"bad", BLUE, question="what"))
        assert answers[0]["answers"][0]["answer"] == "red"
        assert answers[1]["problem"]["status"] == 415
        assert answers[2]["answers"][0]["answer"] == "blue"

    def test_a_bad_image_fails_only_its_row(self, client: Remote) -> None:
        answers = results(client.ask("match", RED, b"bad", BLUE, b"", text=["red", "blue"]))
        assert [len(row.get("scores", ())) for row in answers] == [2, 0, 2, 0]
        assert [row["problem"]["status"] for row in answers if "problem" in row] == [415, 422]

    def test_a_bad_image_fails_only_its_pair(self, client: Remote) -> None:
        for images in ((b"bad", RED), (RED, b"bad"), (b"bad", b"")):
            response = client.ask("reason", *images, BLUE, RED, statement=["red", "blue left"])
            first, second = results(response)
            assert first["problem"]["status"] in (415, 422)
            assert second["answer"] is True
        both = client.ask("reason", b"bad", b"", statement=["red", "blue", "green"])
        assert both.status_code in (415, 422)


class TestSteps:
    """Runs of requests that embed shared images first."""

    @pytest.fixture
    def gated(self, tmp_path: Path) -> Gated:
        pair_bundle(tmp_path / "a")
        return Gated(tmp_path, queue_limit=40)

    def test_each_image_is_embedded_once(self, gated: Gated) -> None:
        with serving(gated.app) as remote:
            before = len(gated.backend.calls)
            results(remote.ask("match", RED, BLUE, GREEN, text=["red", "blue", "it is", "what"]))
            steps = [call.step for call in gated.backend.calls[before:]]
            assert sorted(steps) == ["embed"] * 3 + ["fuse"] * 12
            before = len(gated.backend.calls)
            results(remote.ask("reason", RED, BLUE, statement=["red", "blue", "green"]))
            steps = [call.step for call in gated.backend.calls[before:]]
            assert sorted(steps) == ["embed"] * 2 + ["fuse"] * 3
            before = len(gated.backend.calls)
            results(remote.ask("vqa", RED, question="what"))
            results(remote.ask("match", RED, BLUE, text="red"))
            assert [call.step for call in gated.backend.calls[before:]] == ["answer"] * 3
            assert remote.sample("tokenfold_embedded_images_total") == 5

    def test_shared_embeddings_are_counted_once(self, gated: Gated) -> None:
        with serving(gated.app) as remote:
            results(remote.ask("reason", RED, BLUE, statement="red left", level="fast"))
            results(remote.ask("match", RED, BLUE, text=["red", "it"]))
            assert remote.sample("tokenfold_images_total", task="reason") == 2
            assert remote.sample("tokenfold_images_total", task="match") == 4
            assert remote.sample("tokenfold_tokens_total", task="reason", kind="in") == 2 * 21
            assert remote.sample("tokenfold_tokens_total", task="match", kind="in") == 4 * 20
            sized = WORKLOAD.sized(text=4)
            spent = remote.sample("tokenfold_flops_total", task="reason", kind="spent")
            assert spent == 2 * sized.flops(plan_for(sized, 0.5))
            counted = {"task": "reason", "model": "pairs", "level": "fast", "outcome": "ok"}
            assert remote.sample("tokenfold_requests_total", **counted) == 1
            spent = remote.sample("tokenfold_flops_total", task="match", kind="spent")
            sized = WORKLOAD.sized(text=3)
            assert spent == 4 * sized.flops(sized.unreduced) - 2 * sized.embedding

    def test_a_failed_embedding_fails_the_request(self, gated: Gated) -> None:
        with serving(gated.app) as remote:
            gated.backend.error = RuntimeError("secret")
            response = remote.ask("match", RED, BLUE, text=["red", "blue"])
            problem(response, 500, "internal")
            gated.backend.error = None
            assert results(remote.ask("match", RED, BLUE, text=["red", "blue"]))
            assert remote.sample("tokenfold_queue_depth") == 0

    def test_a_caller_that_disconnects_between_the_steps_stops_the_second(
        self, gated: Gated, pool: ThreadPoolExecutor
    ) -> None:
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            before = gated.backend.ran
            first = pool.submit(remote.ask, "vqa", RED, question="what")
            until(lambda: gated.backend.running == 1)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    remote.url + "/v1/match",
                    files=[("image", ("a.png", RED)), ("image", ("b.png", BLUE))],
                    data={"text": ["red", "blue"]},
                    timeout=0.3,
                )
            until(lambda: remote.sample("tokenfold_queue_depth") == 0)
            gated.backend.gate.set()
            assert results(first.result())
            assert gated.backend.ran == before + 1

    def test_a_full_queue_is_answered_with_503(
        self, gated: Gated, pool: ThreadPoolExecutor
    ) -> None:
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            first = pool.submit(remote.ask, "vqa", RED, question="what")
            until(lambda: gated.backend.running == 1)
            # Places for all pairs are taken before the first image is embedded.
            matrix = pool.submit(remote.ask, "match", *[RED] * 4, text=["red"] * 8)
            until(lambda: remote.sample("tokenfold_queue_depth") == 36)
            problem(remote.ask("vqa", RED, question=["what"] * 4), 503, "queue-full")
            gated.backend.gate.set()
            assert results(first.result())
            assert len(results(matrix.result())) == 4

    def test_an_expired_request_is_answered_with_503(self, tmp_path: Path) -> None:
        pair_bundle(tmp_path / "a")
        gated = Gated(tmp_path, request_timeout=0.3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            problem(remote.ask("match", RED, BLUE, text=["red", "blue"]), 503, "expired")
            gated.backend.gate.set()
            assert results(remote.ask("match", RED, BLUE, text=["red", "blue"]))
            until(lambda: remote.sample("tokenfold_queue_depth") == 0)

    def test_a_drain_finishes_the_second_step(self, gated: Gated, pool: ThreadPoolExecutor) -> None:
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            matrix = pool.submit(remote.ask, "match", RED, BLUE, text=["red", "blue"])
            until(lambda: gated.backend.running == 1)
            gated.app.state.core.scheduler.drain()
            gated.backend.gate.set()
            assert len(results(matrix.result())) == 2


def test_concurrent_requests_get_their_own_answers(
    client: Remote, pool: ThreadPoolExecutor
) -> None:
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    fields: list[dict[str, Any]] = [{"level": "fast"}, {"reduction": 0.2}, {}, {"model": "bounded"}]

    def ask(turn: int) -> bool:
        name = list(colours)[turn % 3]
        image, selector = colours[name], fields[turn % len(fields)]
        match turn % 4:
            case 0:
                (result,) = results(client.ask("vqa", image, question="what is it", **selector))
                return bool(result["answers"][0]["answer"] == name)
            case 1:
                answers = results(client.ask("entail", image, hypothesis=[name, "it is " + name]))
                return [result["label"] for result in answers] == ["entailment"] * 2
            case 2:
                white = picture("black", (turn + 1, 9))
                (result,) = results(client.ask("reason", image, white, statement=name, **selector))
                return bool(result["answer"])
            case _:
                rows = results(client.ask("match", *colours.values(), text=[*colours], **selector))
                return [max(range(3), key=row["scores"].__getitem__) for row in rows] == [0, 1, 2]

    assert all(pool.map(ask, range(100)))
    assert client.sample("tokenfold_queue_depth") == 0


def test_a_number_of_labels_that_differs_from_the_graph_fails_the_start(tmp_path: Path) -> None:
    root = pair_bundle(tmp_path / "a")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["tasks"]["vqa"] = ["yes", "no"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    app = create_app(standin.settings(tmp_path))
    with serving(app):
        assert "3 outputs and 2 labels for vqa" in str(app.state.core.failed)


def test_concurrent_requests_share_the_tokenizer(client: Remote) -> None:
    errors: list[BaseException] = []

    def ask(words: int) -> None:
        try:
            with Remote(client.url) as connection:
                for _ in range(10):
                    (result,) = results(connection.ask("vqa", RED, question="it " * words))
                    assert result["text"]["tokens"] == words + 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(words,)) for words in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
