"""Questions, entailment, reasoning and matching over real HTTP."""

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
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def texts(task: str, found: Any) -> dict[str, Any]:
    """In the task's own field."""
    return {TEXTS[task]: found}


def images_of(task: str) -> list[bytes]:
    return [RED, BLUE] if task == "reason" else [RED]


class TestAnswers:
    def test_vqa(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", BLUE, question="What colour is it?", top_k=2))
        assert [found["answer"] for found in result["answers"]] == ["blue", "red"]
        assert [found["index"] for found in result["answers"]] == [2, 0]
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

    def test_entail(self, client: Remote) -> None:
        names = ["it is blue", "it is red", "not"]
        found = results(client.ask("entail", BLUE, hypothesis=names))
        assert [result["label"] for result in found[:2]] == ["entailment", "contradiction"]
        assert list(found[0]["scores"]) == ["entailment", "neutral", "contradiction"]
        assert sum(found[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert found[2]["scores"]["neutral"] == pytest.approx(1 / 3, abs=1e-5)

    def test_reason(self, client: Remote) -> None:
        found = results(client.ask("reason", RED, BLUE, statement=["red left", "blue left"]))
        assert [result["answer"] for result in found] == [True, False]
        assert found[0]["score"] > 0.99 > 0.01 > found[1]["score"]
        assert found[0]["reduction"]["tokens_in"] == 2 * (4 + 17)
        (swapped,) = results(client.ask("reason", BLUE, RED, statement="red left"))
        assert swapped["answer"] is False

    def test_match(self, client: Remote) -> None:
        texts = ["red", "it is the colour blue", "green"]
        response = client.ask("match", RED, BLUE, text=texts)
        found = results(response)
        assert response.json()["texts"] == [{"tokens": n, "cut": False} for n in (3, 7, 3)]
        scores = np.array([row["scores"] for row in found])
        assert (scores > 0.5).tolist() == [[True, False, False], [False, True, False]]
        assert found[0]["reduction"]["tokens_in"] == 3 * 17 + 3 + 7 + 3

    def test_json(self, client: Remote) -> None:
        one = base64.b64encode(BLUE).decode()
        for question in ("what", ["what"]):
            body = {"image": one, "question": question, "top_k": 1, "level": "fast"}
            (result,) = results(client.post("/v1/vqa", json=body))
            assert result["answers"][0]["answer"] == "blue"
            assert result["reduction"]["level"] == "fast"
        body = {"image": [one, f"data:image/png;base64,{one}"], "text": ["red", "blue"]}
        assert len(results(client.post("/v1/match", json=body))) == 2

    def test_one_by_one_or_one_for_all(self, client: Remote) -> None:
        def first(response: httpx.Response) -> list[str]:
            return [result["answers"][0]["answer"] for result in results(response)]

        words = ["what", "what colour", "it"]
        assert first(client.ask("vqa", RED, BLUE, GREEN, question=words)) == [
            *("red", "blue", "green")
        ]
        assert first(client.ask("vqa", RED, BLUE, question="what")) == ["red", "blue"]
        found = results(client.ask("vqa", RED, question=words))
        assert [result["text"]["tokens"] for result in found] == [3, 4, 3]
        two_pairs = client.ask("reason", RED, BLUE, BLUE, RED, statement=["red", "red"])
        assert [result["answer"] for result in results(two_pairs)] == [True, False]
        for_all = client.ask("reason", RED, BLUE, BLUE, RED, statement="red")
        assert [result["answer"] for result in results(for_all)] == [True, False]

    def test_a_long_text_is_cut_and_says_so(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", RED, question="what is it " * 20, include="slots"))
        assert result["text"]["tokens"] == MOST_TOKENS
        assert result["text"]["cut"] is True
        assert result["text"]["pieces"][0] == "[CLS]"
        assert result["text"]["pieces"][-1] == "[SEP]"

    def test_slots(self, client: Remote) -> None:
        (result,) = results(
            client.ask("vqa", RED, question="what colour is it", include="slots", reduction=0.4)
        )
        text, (slots,) = result["text"], result["slots"]
        assert text["pieces"] == ["[CLS]", "what", "colour", "is", "it", "[SEP]"]
        assert len(slots["text_slots"]) == 6
        assert len(slots["image_slots"]) == 17
        assert slots["grid"] == [4, 4]
        assert slots["protected"] == 1
        left = set(slots["text_slots"]) | set(slots["image_slots"]) - {-1}
        assert len(left) == result["reduction"]["tokens_out"]
        assert -1 in slots["image_slots"]
        (result,) = results(client.ask("reason", RED, BLUE, statement="red", include="slots"))
        assert len(result["slots"]) == 2
        response = client.ask("match", RED, BLUE, text=["red", "it is blue"], include="slots")
        assert [[len(one["text_slots"]) for one in row["slots"]] for row in results(response)] == [
            [3, 5], [3, 5]
        ]  # fmt: skip
        assert response.json()["texts"][0]["pieces"] == ["[CLS]", "red", "[SEP]"]

    @pytest.mark.parametrize("task", list(TEXTS))
    def test_every_selector(self, client: Remote, task: str) -> None:
        for fields, level in (
            ({"level": "fast"}, "fast"),
            ({"reduction": 0.5}, "fast"),
            ({"reduction": 0.123}, "custom"),
            ({"max_latency_ms": 10_000}, "exact"),
        ):
            asked = texts(task, "red") | fields
            (result,) = results(client.ask(task, *images_of(task), **asked))
            assert result["reduction"]["level"] == level

    def test_accuracy_is_that_of_the_task(self, client: Remote) -> None:
        # The faster of those that reach it; which that is was measured, of a tiny network.
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

    def test_each_item_has_the_plan_of_its_own_length(self, client: Remote) -> None:
        words = ["what", "what colour is it", "the colour is what is it the left"]
        found = results(client.ask("vqa", RED, question=words, reduction=0.4))
        for result in found:
            text = result["text"]["tokens"]
            sized = WORKLOAD.sized(text=text)
            plan = plan_for(sized, 0.4)
            assert result["reduction"]["flops_ratio"] == pytest.approx(
                flops_ratio(sized, plan), abs=1e-6
            )
            assert result["reduction"]["tokens_in"] == text + 17
            assert result["reduction"]["tokens_out"] == sized.widths(plan)[-1]

    def test_images_of_many_shapes(self, client: Remote) -> None:
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

    def test_which_model(self, client: Remote) -> None:
        assert client.ask("vqa", RED, question="what").json()["model"] == "pairs"
        assert client.ask("match", RED, text="red", model="matcher").json()["model"] == "matcher"
        detail = problem(
            client.ask("vqa", RED, question="what", model="matcher"), 404, "unknown-model"
        )
        assert "pairs, bounded" in detail
        problem(client.ask("vqa", RED, question="what", model="colours"), 404, "unknown-model")
        problem(client.classify(RED, model="pairs"), 404, "unknown-model")

    def test_models(self, client: Remote) -> None:
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
    def test_blank(self, client: Remote, task: str, text: str) -> None:
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
    def test_nothing_that_the_tokenizer_keeps(self, client: Remote, text: str) -> None:
        # Not blank to Python, and no word to the tokenizer.
        response = client.ask("vqa", RED, question=text)
        assert "question.0: is empty" in problem(response, 422, "invalid-request")

    @pytest.mark.parametrize("text", ["a\x00b", "\x1b[0m", "red\x85", "\x7f"])
    def test_control_characters(self, client: Remote, text: str) -> None:
        response = client.post(
            "/v1/vqa", json={"image": base64.b64encode(RED).decode(), "question": text}
        )
        detail = problem(response, 422, "invalid-request")
        assert "question.0: contains the unreadable character U+" in detail
        assert text not in response.text

    def test_half_a_surrogate_pair(self, client: Remote) -> None:
        body = json.dumps({"image": base64.b64encode(RED).decode(), "question": "\ud800"})
        response = client.post(
            "/v1/vqa", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 422)

    def test_line_breaks_are_spaces(self, client: Remote) -> None:
        (result,) = results(client.ask("vqa", RED, question="what\r\n\tcolour"))
        assert result["text"]["tokens"] == 4

    @pytest.mark.parametrize("length", [MAX_CHARACTERS + 1, 1_000_000])
    def test_too_long(self, client: Remote, length: int) -> None:
        begun = time.perf_counter()
        body = {"image": base64.b64encode(RED).decode(), "question": "a " * (length // 2 + 1)}
        response = client.post("/v1/vqa", json=body)
        assert f"at most {MAX_CHARACTERS}" in problem(response, 422, "invalid-request")
        response = client.ask("vqa", RED, question="a" * length)
        assert "question" in problem(response, 422, "invalid-request")
        assert len(response.content) < 1000
        assert time.perf_counter() - begun < 2

    def test_as_long_as_may_be(self, client: Remote) -> None:
        texts = ["red " * (MAX_CHARACTERS // 4)] * 8
        found = results(client.ask("vqa", RED, question=texts))
        assert all(result["text"]["cut"] for result in found)

    def test_no_text(self, client: Remote) -> None:
        assert "question" in problem(client.ask("vqa", RED), 422, "invalid-request")
        one = base64.b64encode(RED).decode()
        for wrong in ([], None, 3, [None], [["red"]], {"a": "b"}):
            response = client.post("/v1/vqa", json={"image": one, "question": wrong})
            assert "question" in problem(response, 422, "invalid-request")

    def test_a_file_for_a_text(self, client: Remote) -> None:
        files = {"image": ("a.png", RED), "question": ("q.txt", b"what")}
        response = client.post("/v1/vqa", files=files)
        assert "question: is text, not a file" in problem(response, 422, "invalid-request")

    def test_text_that_is_not_utf_8(self, client: Remote) -> None:
        content = (
            b'--X\r\ncontent-disposition: form-data; name="question"\r\n\r\n\xff\xfe\r\n--X--\r\n'
        )
        kind = {"content-type": "multipart/form-data; boundary=X"}
        response = client.post("/v1/vqa", content=content, headers=kind)
        assert "question: is not UTF-8" in problem(response, 422, "invalid-request")


class TestCounts:
    def test_that_do_not_pair(self, client: Remote) -> None:
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

    def test_too_many(self, client: Remote) -> None:
        detail = problem(client.ask("vqa", RED, question=["what"] * 9), 422, "invalid-request")
        assert "at most 8 texts" in detail
        detail = problem(client.ask("vqa", *[RED] * 9, question="what"), 422, "invalid-request")
        assert "at most 8 images" in detail
        body = {"image": base64.b64encode(RED).decode(), "question": ["what"] * 5000}
        detail = problem(client.post("/v1/vqa", json=body), 422, "invalid-request")
        assert "more than 1024" in detail

    def test_fields_of_another_task(self, client: Remote) -> None:
        response = client.ask("vqa", RED, question="what", statement="red")
        detail = problem(response, 422, "invalid-request")
        assert detail.startswith("statement: is no field here; known: model, level, ")
        assert detail.endswith("image, question, top_k")

    def test_json_that_is_no_object(self, client: Remote) -> None:
        detail = problem(client.post("/v1/vqa", json=["what"]), 422, "invalid-request")
        assert detail == "The body is JSON, but no object of fields."

    def test_a_huge_product(self, client: Remote) -> None:
        detail = problem(client.ask("match", *[RED] * 5, text=["red"] * 5), 422, "invalid-request")
        assert "25 pairs" in detail
        assert "at most 20" in detail
        assert len(results(client.ask("match", *[RED] * 4, text=["red"] * 5))) == 4

    def test_more_runs_than_may_ever_wait(self, bundles: Path) -> None:
        with serving(create_app(standin.settings(bundles, queue_limit=5, max_items=5))) as remote:
            detail = problem(
                remote.ask("match", RED, BLUE, text=["red"] * 2), 422, "invalid-request"
            )
            assert "6 runs" in detail
            assert results(remote.ask("match", RED, text=["red"] * 2))


class TestBadImages:
    @pytest.mark.parametrize("task", list(TEXTS))
    def test_alone(self, client: Remote, task: str) -> None:
        images = [b"bad", RED] if task == "reason" else [b"bad"]
        for words in (["red"], ["red", "blue"]):
            response = client.ask(task, *images, **texts(task, words))
            problem(response, 415, "image-format")
            if len(words) > 1 and task != "match":
                assert len(response.json()["results"]) == 2

    def test_among_good_ones(self, client: Remote) -> None:
        found = results(client.ask("vqa", RED, b"bad", BLUE, question="what"))
        assert found[0]["answers"][0]["answer"] == "red"
        assert found[1]["problem"]["status"] == 415
        assert found[2]["answers"][0]["answer"] == "blue"

    def test_a_row_of_a_matrix(self, client: Remote) -> None:
        found = results(client.ask("match", RED, b"bad", BLUE, b"", text=["red", "blue"]))
        assert [len(row.get("scores", ())) for row in found] == [2, 0, 2, 0]
        assert [row["problem"]["status"] for row in found if "problem" in row] == [415, 422]

    def test_half_of_a_pair(self, client: Remote) -> None:
        for images in ((b"bad", RED), (RED, b"bad"), (b"bad", b"")):
            response = client.ask("reason", *images, BLUE, RED, statement=["red", "blue left"])
            first, second = results(response)
            assert first["problem"]["status"] in (415, 422)
            assert second["answer"] is True
        both = client.ask("reason", b"bad", b"", statement=["red", "blue", "green"])
        assert both.status_code in (415, 422)


class TestSteps:
    """What is run how often."""

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

    def test_metrics(self, gated: Gated) -> None:
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

    def test_an_embedding_that_fails(self, gated: Gated) -> None:
        with serving(gated.app) as remote:
            gated.backend.error = RuntimeError("secret")
            response = remote.ask("match", RED, BLUE, text=["red", "blue"])
            problem(response, 500, "internal")
            gated.backend.error = None
            assert results(remote.ask("match", RED, BLUE, text=["red", "blue"]))
            assert remote.sample("tokenfold_queue_depth") == 0

    def test_a_caller_that_goes_away_between_the_steps(
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

    def test_overload(self, gated: Gated, pool: ThreadPoolExecutor) -> None:
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

    def test_out_of_time(self, tmp_path: Path) -> None:
        pair_bundle(tmp_path / "a")
        gated = Gated(tmp_path, request_timeout=0.3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            problem(remote.ask("match", RED, BLUE, text=["red", "blue"]), 503, "expired")
            gated.backend.gate.set()
            assert results(remote.ask("match", RED, BLUE, text=["red", "blue"]))
            until(lambda: remote.sample("tokenfold_queue_depth") == 0)

    def test_shutting_down_between_the_steps(self, gated: Gated, pool: ThreadPoolExecutor) -> None:
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            matrix = pool.submit(remote.ask, "match", RED, BLUE, text=["red", "blue"])
            until(lambda: gated.backend.running == 1)
            gated.app.state.core.scheduler.drain()
            gated.backend.gate.set()
            assert len(results(matrix.result())) == 2


def test_many_at_once(client: Remote, pool: ThreadPoolExecutor) -> None:
    colours = {"red": RED, "green": GREEN, "blue": BLUE}
    fields: list[dict[str, Any]] = [{"level": "fast"}, {"reduction": 0.2}, {}, {"model": "bounded"}]

    def ask(turn: int) -> bool:
        name = list(colours)[turn % 3]
        image, more = colours[name], fields[turn % len(fields)]
        match turn % 4:
            case 0:
                (result,) = results(client.ask("vqa", image, question="what is it", **more))
                return bool(result["answers"][0]["answer"] == name)
            case 1:
                found = results(client.ask("entail", image, hypothesis=[name, "it is " + name]))
                return [result["label"] for result in found] == ["entailment"] * 2
            case 2:
                white = picture("black", (turn + 1, 9))
                (result,) = results(client.ask("reason", image, white, statement=name, **more))
                return bool(result["answer"])
            case _:
                rows = results(client.ask("match", *colours.values(), text=[*colours], **more))
                return [max(range(3), key=row["scores"].__getitem__) for row in rows] == [0, 1, 2]

    assert all(pool.map(ask, range(100)))
    assert client.sample("tokenfold_queue_depth") == 0


def test_a_bundle_that_says_something_else(tmp_path: Path) -> None:
    root = pair_bundle(tmp_path / "a")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["tasks"]["vqa"] = ["yes", "no"]
    (root / "manifest.json").write_text(json.dumps(manifest))
    app = create_app(standin.settings(tmp_path))
    with serving(app):
        assert "3 outputs and 2 labels for vqa" in str(app.state.core.failed)


def test_threads_share_the_tokenizer(client: Remote) -> None:
    errors: list[BaseException] = []

    def ask(words: int) -> None:
        try:
            with Remote(client.url) as one:
                for _ in range(10):
                    (result,) = results(one.ask("vqa", RED, question="it " * words))
                    assert result["text"]["tokens"] == words + 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(words,)) for words in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
