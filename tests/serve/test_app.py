"""The routes, asked by OpenAI's own client, by lm-eval's requests and by careless ones."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from kdexport.bundle import Bundle
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages, split_opening
from kdexport.content.review import review_copy
from kdexport.errors import InputError
from kdexport.runtime.generate import generate
from kdexport.runtime.logits import log_sum_exp
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.stream import write_text
from kdexport.runtime.text import TextCodec, load_text
from kdexport.serve.guard import HEADERS
from kdexport.serve.jobs import Answer
from tests.browser import scripted
from tests.serve.serving import Served, served

USER: Any = [{"role": "user", "content": "Fresh bread"}]
LONG: Any = {"min_tokens": 200}


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with served(bundle, max_rows=4, max_waiting=8) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.openai() as found:
        yield found


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return open_session(bundle, n_threads=1)


@pytest.fixture(scope="module")
def codec(bundle: Bundle) -> TextCodec:
    return load_text(bundle)


def text_of(session: Session, codec: TextCodec, prompt: str, n: int, **sampling: Any) -> str:
    """What the runtime writes, without a server."""
    seed, stop = sampling.pop("seed", 0), sampling.pop("stop", ())
    pieces = write_text(
        session,
        codec,
        codec.encode(prompt),
        make_sampler(**sampling),
        max_new_tokens=n,
        seed=seed,
        stop=stop,
    )
    return "".join(piece.text for piece in pieces)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "kdexport"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 4}])
def test_a_completion_is_what_the_runtime_writes(
    client: openai.OpenAI, session: Session, codec: TextCodec, sampling: dict[str, Any]
) -> None:
    found = client.completions.create(
        model="tiny", prompt="Fresh bread", max_tokens=12, stop=["zz"], **sampling
    )
    expected = text_of(session, codec, "Fresh bread", 12, stop=["zz"], **sampling)
    assert found.choices[0].text == expected
    assert found.choices[0].finish_reason in ("stop", "length")
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(codec.encode("Fresh bread"))
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "Fresh bread",
        "max_tokens": 20,
        "temperature": 0.8,
        "seed": 3,
        "logprobs": 2,
        "echo": True,
    }
    whole = client.completions.create(**asked)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    expected = whole.choices[0].logprobs
    assert expected is not None
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        parts = [getattr(choice.logprobs, name) for choice in choices]
        assert [value for part in parts for value in part or []] == getattr(expected, name)


def test_several_prompts_and_several_texts_each(
    client: openai.OpenAI, session: Session, codec: TextCodec
) -> None:
    prompts = ["Fresh", "Buy two"]
    found = client.completions.create(
        model="tiny", prompt=prompts, n=2, max_tokens=6, temperature=0.9, seed=5
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    for number, prompt in enumerate(prompts):
        expected = text_of(session, codec, prompt, 6, temperature=0.9, seed=5)
        assert found.choices[2 * number].text == expected
    assert len({choice.text for choice in found.choices}) == 4
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(len(codec.encode(prompt)) for prompt in prompts)


def test_penalties_and_biases_reach_the_sampler(
    client: openai.OpenAI, session: Session, codec: TextCodec
) -> None:
    options: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
    found = client.completions.create(
        model="tiny", prompt="Buy", max_tokens=8, temperature=0, logit_bias={"40": 3}, **options
    )
    assert found.choices[0].text == text_of(session, codec, "Buy", 8, logit_bias={40: 3}, **options)
    barred = client.completions.create(
        model="tiny", prompt="Buy", max_tokens=1, logprobs=1, logit_bias={"41": 100}
    )
    assert barred.choices[0].logprobs is not None
    assert barred.choices[0].text == codec.decode([41])


@pytest.mark.parametrize("n_new", [0, 1])
def test_lm_eval_finds_the_scores_of_the_session(
    server: Served, session: Session, codec: TextCodec, n_new: int
) -> None:
    """The request of its local-completions; its parsing, as of version 0.4.9, is repeated here."""
    prompts = [codec.encode(text) for text in ("Fresh bread from our oven", "The quick fox " * 9)]
    n_context = 2
    with server.http() as http:
        answer = http.post(
            "/v1/completions",
            json={
                "prompt": prompts,
                "model": "tiny",
                "max_tokens": n_new,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
                "temperature": 0,
            },
        )
    choices = answer.raise_for_status().json()["choices"]
    for choice, ids in zip(choices, prompts, strict=True):
        logprobs = choice["logprobs"]
        end = len(logprobs["token_logprobs"]) - n_new
        assert end == len(ids)
        tokens = logprobs["token_logprobs"][n_context:end]
        top = logprobs["top_logprobs"][n_context:end]
        is_greedy = all(token == max(t.values()) for token, t in zip(tokens, top, strict=True))
        rows = session.score(ids)[n_context - 1 : -1]
        expected = [
            float(row[token]) - log_sum_exp(row)
            for row, token in zip(rows, ids[n_context:], strict=True)
        ]
        assert tokens == pytest.approx(expected, abs=1e-4)
        assert is_greedy == all(
            row.argmax() == token for row, token in zip(rows, ids[n_context:], strict=True)
        )


def test_a_text_that_the_model_would_write_is_greedy(server: Served, session: Session) -> None:
    prompt = [5, 6, 7]
    steps = list(generate(session, prompt, make_sampler(), max_new_tokens=5))
    ids = [*prompt, *(step.token_id for step in steps)]
    body = {"model": "tiny", "prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True}
    with server.http() as http:
        found = http.post("/v1/completions", json=body | {"temperature": 0}).json()
    logprobs = found["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    pairs = zip(logprobs["token_logprobs"][3:-1], logprobs["top_logprobs"][3:-1], strict=True)
    assert all(token == max(top.values()) for token, top in pairs)


def test_a_chat_is_asked_through_the_template(
    client: openai.OpenAI, session: Session, codec: TextCodec
) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=10, temperature=0, logprobs=True, top_logprobs=2
    )
    expected = text_of(session, codec, codec.render_chat(USER), 10)
    choice = found.choices[0]
    assert choice.message.content == expected and choice.message.role == "assistant"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    for token in choice.logprobs.content:
        assert token.logprob <= max(top.logprob for top in token.top_logprobs) <= 0
        assert len(token.top_logprobs) == 2
    ended = choice.finish_reason == "stop"
    assert found.usage is not None
    assert len(choice.logprobs.content) == found.usage.completion_tokens - ended


def test_a_chat_streams(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            *USER,
        ],
        "max_completion_tokens": 10,
        "n": 2,
        "seed": 2,
        "stop": "q",
    }
    whole = client.chat.completions.create(**asked)
    texts, reasons = ["", ""], [None, None]
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = reasons[choice.index] or choice.finish_reason  # type: ignore
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert "q" not in "".join(texts)


def test_the_model_goes_on_from_an_answer_that_has_begun(
    client: openai.OpenAI, session: Session, codec: TextCodec
) -> None:
    messages: Any = [*USER, {"role": "assistant", "content": "Our oven"}]
    found = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=6, temperature=0
    )
    expected = text_of(session, codec, codec.render_chat(messages), 6)
    assert found.choices[0].message.content == expected


def test_an_answer_keeps_to_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"subject": {"type": "string", "maxLength": 12}, "n": {"enum": [1, 2]}},
        "required": ["subject", "n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "mail", "schema": schema}}
    found = client.chat.completions.create(
        model="tiny", messages=USER, n=4, seed=1, max_tokens=120, response_format=form
    )
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert set(value) == {"subject", "n"} and value["n"] in (1, 2)
        assert len(value["subject"]) <= 12
    assert len({choice.message.content for choice in found.choices}) > 1
    form["json_schema"]["schema"] = {"type": "no such"}
    with pytest.raises(openai.BadRequestError, match="no grammar can be made") as refused:
        client.chat.completions.create(model="tiny", messages=USER, response_format=form)
    assert refused.value.param == "response_format"


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[A-Z][a-z]{2,5}[0-9]{1,2} %"}, "[A-Z][a-z]{2,5}[0-9]{1,2} %"),
        ({"choice": ["warm", "dry tea", "трава"]}, "warm|dry tea|трава"),
        ({"json": {"enum": [1, "two"]}}, '1|"two"'),
    ],
)
def test_an_answer_keeps_to_the_form_that_vllm_s_field_says(
    client: openai.OpenAI, route: str, wanted: dict[str, Any], pattern: str
) -> None:
    extra: Any = {"extra_body": {"structured_outputs": wanted}, "seed": 1, "max_tokens": 60}
    if route == "completions":
        asked = client.completions.create(model="tiny", prompt="Fresh", n=3, **extra)
        texts = [choice.text for choice in asked.choices]
    else:
        answer = client.chat.completions.create(model="tiny", messages=USER, n=3, **extra)
        texts = [choice.message.content or "" for choice in answer.choices]
    assert len(texts) == 3
    assert all(re.fullmatch(pattern, text) for text in texts), texts


def test_server_sent_events_end_with_done(server: Served) -> None:
    body = {"model": "tiny", "prompt": "Fresh", "max_tokens": 3, "stream": True}
    with server.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines[:-1])


BRIEF: dict[str, Any] = {
    "product": "Rye bread",
    "facts": ["baked at 5 am"],
    "channel": "sms",
    "tone": "fun",
}


def test_copy_is_what_generate_writes_for_a_brief(
    server: Served, session: Session, codec: TextCodec
) -> None:
    channel = load_channels()["sms"]
    messages = brief_messages(Brief(**BRIEF), channel)
    prompt, (_, opening) = codec.render_chat(messages), split_opening(messages)
    expected = text_of(session, codec, prompt, channel.max_new_tokens, stop=["\n"])
    with server.http() as http:
        found = http.post("/v1/copy", json={"brief": BRIEF}).raise_for_status().json()
    (copy,) = found["copies"]
    assert copy["text"] == (opening + expected).strip()
    finished = copy["finish_reason"] == "stop"
    review = review_copy(copy["text"], Brief(**BRIEF), channel, finished=finished).as_json()
    assert copy["review"] == json.loads(json.dumps(review))
    assert copy["review"]["lengths"][0]["counter"] == "sms_segments"
    assert found["channel"] == "sms" and found["usage"]["completion_tokens"] > 0


def test_copy_that_was_cut_off_does_not_pass(server: Served) -> None:
    body = {"brief": BRIEF, "max_tokens": 1, "logit_bias": {"40": 100}}
    with server.http() as http:
        (copy,) = http.post("/v1/copy", json=body).raise_for_status().json()["copies"]
    assert (copy["finish_reason"], copy["review"]["passed"]) == ("length", False)
    assert copy["review"]["findings"][-1]["check"] == "truncated"


def test_of_candidates_the_best_are_the_copies(
    server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `kdexport write` chooses: of three that pass, one is nearly another."""
    good, fresh = " baked at 5 am.", " fresh from the oven, at 5 am."
    scripted.write(monkeypatch, bundle, " baked at 6 am, 7 am.", good, f"{good}!", fresh)
    body: dict[str, Any] = {"brief": BRIEF | {"variants": 4}, "candidates": 4}
    with server.http() as http:
        whole = http.post("/v1/copy", json=body).raise_for_status().json()
        streamed = http.post("/v1/copy", json=body | {"stream": True})
    copies = whole["copies"]
    assert [copy["variant"] for copy in copies] == [0, 1, 2, 3]
    assert [copy["status"] for copy in copies] == ["pass", "pass", "fail", "fail"]
    taken = {copy["candidate"] for copy in copies[:2]}
    assert taken in ({1, 3}, {2, 3}) and all(not copy["violations"] for copy in copies[:2])
    assert copies[2]["violations"] == [f"alike: nearly candidate {min(taken)}"]
    faults = [f"facts: {figure!r} is not in the brief" for figure in ("6 am", "7 am.")]
    assert (copies[3]["candidate"], copies[3]["violations"]) == (0, faults)
    assert [copy["review"]["passed"] for copy in copies] == [True, True, True, False]
    assert whole["n_passed"] == 3
    *pieces, last = [json.loads(line[6:]) for line in streamed.text.splitlines() if "{" in line]
    assert last == whole
    assert {piece["candidate"] for piece in pieces} == {0, 1, 2, 3}


def test_candidates_are_drawn_but_for_the_likeliest(server: Served) -> None:
    body: dict[str, Any] = {"brief": BRIEF, "candidates": 3, "seed": 1, "stream": True}
    texts = ["", "", ""]
    with server.http() as http:
        alone = http.post("/v1/copy", json={"brief": BRIEF}).json()["copies"][0]["text"]
        lines = http.post("/v1/copy", json=body).text.splitlines()
        refused = http.post("/v1/copy", json=body | {"candidates": 65})
    *pieces, last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for piece in pieces:
        texts[piece["candidate"]] += piece["text"]
    assert texts[0].strip() == alone and len(set(texts)) == 3
    (copy,) = last["copies"]
    assert copy["text"] == texts[copy["candidate"]].strip()
    assert refused.status_code == 400 and "candidates" in refused.text


def test_copy_streams_its_variants(server: Served) -> None:
    body: dict[str, Any] = {"brief": BRIEF | {"variants": 3, "seed": 1}}
    texts = ["", "", ""]
    with server.http() as http:
        whole = http.post("/v1/copy", json=body).raise_for_status().json()
        answer = http.post("/v1/copy", json=body | {"stream": True})
    events = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    for event in events[:-1]:
        texts[event["variant"]] += event["text"]
    assert events[-1] == whole
    assert [text.strip() for text in texts] == [copy["text"] for copy in whole["copies"]]
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("route", "body", "status", "param", "words"),
    [
        ("completions", {"model": "other", "prompt": "a"}, 404, "model", "no model 'other'"),
        ("completions", {"prompt": "a"}, 400, "model", "required"),
        ("completions", {"prompt": "a" * 3000}, 400, "prompt", "256 tokens"),
        ("completions", {"prompt": "a b", "max_tokens": 300}, 400, "prompt", "256 tokens"),
        ("completions", {"prompt": "a " * 100_000}, 400, "prompt", "200000 characters"),
        ("completions", {"prompt": ""}, 400, "prompt", "empty"),
        ("completions", {"prompt": [5, 999]}, 400, "prompt", "token 999"),
        ("completions", {"prompt": [-1]}, 400, "prompt.ids.0", "greater than"),
        ("completions", {"prompt": "a", "temperature": 3}, 400, "temperature", "less than"),
        ("completions", {"prompt": "a", "top_p": 0}, 400, "top_p", "greater than"),
        ("completions", {"prompt": "a", "best_of": 3}, 400, None, "best_of"),
        ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix", "not supported"),
        ("completions", {"prompt": "a", "max_tokens": 0}, 400, None, "echo"),
        ("completions", {"prompt": "a", "logit_bias": {"999": 1}}, 400, "logit_bias", "999"),
        ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, None, "integer"),
        ("completions", {"prompt": "a", "stop": [""]}, 400, "stop.0", "at least 1"),
        ("completions", {"prompt": "a", "n": 13}, 400, None, "13 texts; the server takes 12"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
        ("chat/completions", {"messages": [{"role": "tool", "content": ""}]}, 400, None, "system"),
        ("chat/completions", {"messages": USER, "tools": []}, 400, "tools", "not supported"),
        ("chat/completions", {"messages": USER, "top_logprobs": 2}, 400, None, "logprobs"),
        (
            "chat/completions",
            {"messages": USER, "response_format": {"type": "json_schema"}},
            400,
            "response_format",
            "json_schema",
        ),
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"regex": "[a-"}},
            400,
            "structured_outputs",
            "no grammar can be made",
        ),
        (
            "chat/completions",
            {"messages": USER, "structured_outputs": {"regex": "a", "choice": ["b"]}},
            400,
            "structured_outputs",
            "one of json, regex and choice",
        ),
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"choice": []}},
            400,
            "structured_outputs.choice",
            "at least 1",
        ),
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"regex": "a" * 10_001}},
            400,
            "structured_outputs.regex",
            "at most 10000",
        ),
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"grammar": "x"}},
            400,
            "structured_outputs.grammar",
            "not supported",
        ),
        (
            "chat/completions",
            {
                "messages": USER,
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
            400,
            None,
            "do not go together",
        ),
        (
            "completions",
            {"prompt": "a", "structured_outputs": {"regex": "a"}, "min_tokens": 3},
            400,
            None,
            "ends where its form does",
        ),
        ("completions", {"prompt": "a", "guided_regex": "a"}, 400, "guided_regex", "not supported"),
        ("copy", {"brief": {}}, 400, "brief.product", "required"),
        ("copy", {"brief": {"product": "a", "channel": "fax"}}, 400, "brief.channel", "fax"),
        ("copy", {"brief": {"product": "a " * 300}}, 400, "brief", "256 tokens"),
        ("nothing", {}, 404, None, "not found"),
    ],
)
def test_what_is_wrong_is_named(
    server: Served,
    route: str,
    body: dict[str, Any],
    status: int,
    param: str | None,
    words: str,
) -> None:
    if "required" not in words and route != "copy":
        body = {"model": "tiny"} | body
    with server.http() as http:
        answer = http.post(f"/v1/{route}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, words in error["message"]) == (status, True), error
    assert param is None or error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b" " * 9_000_000, 413)],
)
def test_a_body_that_is_none_is_refused(server: Served, content: bytes, status: int) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", content=content)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_what_a_template_refuses_does_not_tell_the_servers_folders(
    server: Served, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(messages: Any) -> str:
        raise InputError("the chat template refuses the messages", where=str(bundle.path))

    monkeypatch.setattr(server.engine.codec, "render_chat", refuse)
    with server.http() as http:
        body = {"model": "tiny", "messages": USER}
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "template refuses" in answer.text
    assert str(bundle.path) not in answer.text


def test_a_mistake_of_ours_is_500_without_its_words(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(messages: Any) -> str:
        raise RuntimeError("a secret")

    monkeypatch.setattr(server.engine.codec, "render_chat", fail)
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": USER})
        measures = http.get("/metrics").text
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["Connection"] == "close"  # or the next request may meet its end
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert 'kdexport_requests_total{route="/v1/chat/completions",status="500"} 1.0' in measures


def test_null_is_the_default(server: Served) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": None, "stop": None, "suffix": None}
    with server.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 200


def test_another_sites_page_is_refused(server: Served) -> None:
    with server.http() as http:
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 421
        other = {"Origin": "http://evil.example"}
        assert http.get("/health", headers=other).status_code == 403
        assert http.get("/health", headers={"Host": "["}).status_code == 421
        assert http.get("/health", headers={"Origin": "http://["}).status_code == 403
        own = {"Origin": server.url}
        assert http.get("/health", headers=own).status_code == 200
        assert http.get("/health", headers={"Host": "localhost:80"}).status_code == 200


def test_the_key_is_asked_for(bundle: Bundle) -> None:
    with served(bundle, key="sesame") as found:
        with found.openai("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with found.openai("sesame") as client:
            assert client.models.list().data
        with found.http() as http:
            assert http.get("/health").status_code == 200
            assert http.post("/v1/copy", json={}).status_code == 401


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes its time."""
    run = Session.run

    def slow(self: Session, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return run(self, *arguments, **options)

    monkeypatch.setattr(Session, "run", slow)


@pytest.mark.usefixtures("slow_steps")
def test_what_is_full_says_when_to_come_again(bundle: Bundle) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 200, **LONG, "stream": True}
    with served(bundle, max_rows=1, max_waiting=0) as found, found.http() as http:
        with http.stream("POST", "/v1/completions", json=body) as first:
            lines = first.iter_lines()  # held: what is dropped closes its connection
            next(lines)
            refused = http.post("/v1/completions", json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            health = http.get("/health").json()
            assert (health["rows"], health["waiting"], health["room"]) == (1, 0, 1)
        found.wait_for_rest()


@pytest.mark.parametrize("more", [{"stream": True}, {"n": 2}, {"stream": True, "n": 2}])
def test_a_client_that_goes_frees_its_rows_within_two_tokens(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """The model stands still until the server has seen that the client is gone."""
    run, cancel = Session.run, Answer.cancel
    may_go, has_seen, steps = threading.Event(), threading.Event(), []

    def counted(self: Session, *arguments: Any, **options: Any) -> Any:
        steps.append(1)
        if len(steps) > 3:
            assert may_go.wait(30)
        return run(self, *arguments, **options)

    def noted(self: Answer) -> None:
        cancel(self)
        has_seen.set()

    monkeypatch.setattr(Session, "run", counted)
    monkeypatch.setattr(Answer, "cancel", noted)
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 200, **LONG, **more}).encode()
    with served(bundle, max_rows=1, max_waiting=1) as found:
        host = found.url.removeprefix("http://")
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        name, _, port = host.partition(":")
        with socket.create_connection((name, int(port))) as client:
            client.sendall(head.encode() + body)
            while len(steps) < 4:
                time.sleep(0.01)
            assert found.engine.n_open == more.get("n", 1)
        assert has_seen.wait(30)
        n_before = len(steps)
        may_go.set()
        found.wait_for_rest()
    assert len(steps) - n_before <= 2


@pytest.mark.usefixtures("slow_steps")
def test_a_request_that_takes_too_long_is_told(bundle: Bundle) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 200, **LONG}
    with served(bundle, timeout_seconds=0.02) as found, found.http() as http:
        answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        streamed = http.post("/v1/completions", json=body | {"stream": True})
        lines = [line for line in streamed.text.splitlines() if line]
        assert json.loads(lines[-2][6:])["error"]["code"] == "timeout"
        assert lines[-1] == "data: [DONE]"


def test_metrics_count_what_happened(server: Served) -> None:
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "min_tokens": 4}

    def measures() -> dict[str, float]:
        lines = http.get("/metrics").text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    with server.http() as http:
        before = measures()
        http.post("/v1/completions", json=body)
        http.post("/v1/completions", json={})
        http.get("/v1/nothing/1")
        http.get("/v1/models/tiny")
        after = measures()
    assert grown("kdexport_prompt_tokens_total") == 3
    assert grown("kdexport_new_tokens_total") == 4
    assert grown('kdexport_requests_total{route="/v1/completions",status="200"}') == 1
    assert grown('kdexport_requests_total{route="/v1/completions",status="400"}') == 1
    assert grown('kdexport_requests_total{route="/v1/models",status="200"}') == 1
    assert grown('kdexport_requests_total{route="other",status="404"}') == 1
    assert grown("kdexport_ttft_seconds_count") == grown("kdexport_tpot_seconds_count") == 1
    assert after["kdexport_batch_rows"] == after["kdexport_waiting_texts"] == 0
