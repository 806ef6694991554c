"""Motion phrases from a real HTTP server that also misbehaves."""

import json
import socket
from dataclasses import replace

import jsonschema
import pytest

from followclick_core.dataset.caption_cache import Answer, CaptionCache
from followclick_core.dataset.endpoint import (
    SCHEMA,
    MalformedAnswerError,
    ask_endpoint,
    load_examples,
    messages_for,
    parse_answer,
)
from followclick_core.dataset.params import CaptionParams

from .fake_endpoint import TOKENS, FakeEndpoint


@pytest.fixture
def endpoint():
    server = FakeEndpoint()
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path):
    cache = CaptionCache(tmp_path / "captions.sqlite")
    yield cache
    cache.close()


@pytest.fixture
def params(endpoint):
    return CaptionParams(endpoint.url, "fake", concurrency=4, retries=3, timeout=2.0, attempts=3)


def test_captions_are_answered_by_the_schema_with_fifty_examples_in_context(endpoint, cache, params):
    report = ask_endpoint(["a dog up", "a cat down"], params, cache)
    assert (report.asked, report.answered) == (2, 2)
    assert cache.answer("a dog up") == Answer("move up", ("thing",))
    body = endpoint.requests[0]["body"]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA and body["model"] == "fake"
    assert body["messages"][0]["content"].count('"caption"') == 50


def test_the_fifty_examples_are_of_the_schema_they_teach():
    examples = load_examples()
    assert len({example["caption"] for example in examples}) == 50
    for example in examples:
        jsonschema.validate({key: example[key] for key in ("objects", "motion")}, SCHEMA)
        assert example["objects"] and parse_answer(json.dumps({k: example[k] for k in ("objects", "motion")}))
    still = [example for example in examples if not example["motion"]]
    assert 10 <= len(still) <= 20
    # What precedes the caption is the same for all, so that endpoints can cache it.
    assert messages_for("a")[0] == messages_for("b")[0]


def test_no_caption_is_paid_for_twice_in_one_run_or_the_next(endpoint, tmp_path, params):
    for _ in range(2):
        cache = CaptionCache(tmp_path / "captions.sqlite")
        ask_endpoint(["a dog up", "a cat down", "a dog up"], params, cache)
        cache.close()
    assert endpoint.counts == {"a dog up": 1, "a cat down": 1}


def test_it_goes_on_after_429_and_500(endpoint, cache, params):
    report = ask_endpoint(["429 a", "500 b"], params, cache)
    assert (report.answered, report.failed, report.quarantined) == (2, {}, 0)
    assert endpoint.counts == {"429 a": 3, "500 b": 3}
    assert cache.requests == 2  # what was refused was not paid


def test_a_slow_answer_is_a_timeout_and_asked_again_by_the_next_run(endpoint, cache, params):
    slow = replace(params, timeout=1.0, retries=0)
    report = ask_endpoint(["slow a", "a dog up"], slow, cache)
    assert report.failed == {"timeout": 1} and report.answered == 1
    report = ask_endpoint(["slow a", "a dog up"], replace(params, timeout=10), cache)
    assert (report.asked, report.answered) == (1, 1)


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("garbage a", "no completion"),
        ("prose a", "no JSON"),
        ("schema a", "wrong schema"),
        ("half a", "not UTF-8"),
        ("halves a", "no JSON"),
        ("deep a", "no JSON"),
        ("deeper a", "no completion"),
        ("parts a", "no completion"),
    ],
)
def test_malformed_answers_end_in_quarantine_and_are_not_asked_again(endpoint, cache, params, caption, problem):
    report = ask_endpoint([caption, "a dog up"], params, cache)
    assert (report.quarantined, report.malformed, report.answered) == (1, 3, 1)
    assert cache.answer(caption) is None
    assert cache.quarantined()[caption].startswith(problem)
    assert endpoint.counts[caption] == 3
    assert ask_endpoint([caption], params, cache).asked == 0
    assert cache.release() == 1
    assert ask_endpoint([caption], params, cache).asked == 1


def test_one_malformed_answer_is_forgiven(endpoint, cache, params):
    report = ask_endpoint(["once upon"], params, cache)
    assert (report.answered, report.malformed, report.quarantined) == (1, 1, 0)
    assert cache.tokens_spent == 2 * TOKENS  # both were paid


def test_requests_run_at_the_same_time_but_not_more_than_asked_for(tmp_path):
    server = FakeEndpoint(delay=0.1)
    cache = CaptionCache(tmp_path / "captions.sqlite")
    try:
        params = CaptionParams(server.url, "fake", concurrency=5)
        ask_endpoint([f"a dog {number}" for number in range(20)], params, cache)
    finally:
        cache.close(), server.close()
    assert server.most_at_once == 5


def test_the_budget_is_never_exceeded(endpoint, cache, params):
    captions = [f"a dog {number}" for number in range(40)]
    # The true price is lower than the estimate for the first request, which holds until an answer tells.
    budget = 12 * TOKENS
    report = ask_endpoint(captions, replace(params, token_budget=budget), cache)
    assert report.stopped_by == f"the budget of {budget} tokens"
    assert 0 < cache.tokens_spent <= budget
    assert report.answered + report.not_asked == 40
    # It is the cache's, so further runs share it, and in the end ask nothing; a larger one goes on with what is left.
    while ask_endpoint(captions, replace(params, token_budget=budget), cache).asked:
        assert cache.tokens_spent <= budget
    assert cache.tokens_spent > budget // 2
    left = 40 - cache.requests
    assert ask_endpoint(captions, replace(params, token_budget=10**9), cache).answered == left > 0
    assert set(endpoint.counts.values()) == {1}


def test_a_dead_endpoint_is_given_up_and_named(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = CaptionParams(f"http://127.0.0.1:{port}/v1", "fake", concurrency=4, retries=0)
    report = ask_endpoint([f"a dog {number}" for number in range(100)], params, cache)
    assert report.answered == 0
    assert report.stopped_by == "the endpoint (no connection)"
    assert sum(report.failed.values()) == report.asked < 12
    assert report.asked + report.not_asked == 100


def test_a_refused_key_is_given_up_and_named(endpoint, cache, params, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    captions = [f"forbidden {number}" for number in range(50)]
    report = ask_endpoint(captions, replace(params, key_variable="SOME_KEY"), cache)
    assert report.stopped_by == "the endpoint (HTTP 401)" and report.asked < 12
    assert endpoint.requests[0]["key"] == "Bearer secret"


def test_long_winded_motions_are_malformed():
    with pytest.raises(MalformedAnswerError, match="a motion of 200 characters"):
        parse_answer(json.dumps({"objects": [], "motion": "x" * 200}))


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "c.sqlite").write_text("no database, but long enough to have a header" * 20)
    with pytest.raises(ValueError, match="is no caption cache"):
        CaptionCache(tmp_path / "c.sqlite")
