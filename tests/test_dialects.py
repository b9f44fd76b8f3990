"""Servers that speak other protocols than plain OpenAI's: how each is found out by one probe, where token ids stand,
what a server doesn't take, several answers at once, a server that is lost, and its own counts of speculation."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Answer, Good, completion, decoded, said, servers, subject_of
from tiny import gpt2, greedy, letters, prompts, save, sybil

from sybil.errors import EndpointFailed, EndpointLost, EndpointRefused, InvalidSetting
from sybil.losslessness import counters, endpoint
from sybil.losslessness.answers import TEXT, TEXT_ONLY
from sybil.losslessness.evidence import Reference
from sybil.losslessness.judge import Plan, verify
from sybil.losslessness.samples import Request, Sample
from sybil.losslessness.speculation import Seen, Speculation
from sybil.servers.transport import Server

PROMPTS = [prompt.tolist() for prompt in prompts([3, 7, 5, 9])]
GREEDY = Request(max_new_tokens=12, temperature=0.0)
SAMPLED = Request(max_new_tokens=12)
END_TOKENS = "no end tokens but the model's own are tried"

Serve = Callable[..., Good]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with servers() as start:
        yield start


# --- protocols


def text_of(tokens: list[int]) -> str:
    return letters().decode(tokens)


def vllm(body: dict[str, Any]) -> Any:
    tokens = decoded(body)
    named = [f"token_id:{token}" for token in tokens]
    return completion(
        text=text_of(tokens),
        token_ids=tokens if body.get("return_token_ids") else None,
        logprobs={"tokens": named if body.get("return_tokens_as_token_ids") else list(text_of(tokens))},
        finish_reason="length" if len(tokens) == body["max_tokens"] else "stop",
    ) | {"usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(tokens)}}


def old_vllm(body: dict[str, Any]) -> Any:
    return vllm({name: value for name, value in body.items() if name != "return_token_ids"})


def plain(body: dict[str, Any]) -> Any:
    """Texts of tokens, as OpenAI has them."""
    known = ("prompt", "max_tokens", "temperature", "seed", "stop")
    return vllm({name: body[name] for name in known if name in body} | {"ignore_eos": True})


def llama_said(body: dict[str, Any], count: int) -> tuple[list[int], str]:
    """llama.cpp knows no stop_token_ids, ends at the model's own, and takes them out where they are to be ignored."""
    assert not body.get("ignore_eos") or "repetition_penalty" in body  # only as long as it isn't known to be llama.cpp
    stops = tuple(body.get("stop", ()))
    request = Request(max_new_tokens=count, temperature=body["temperature"], stop_strings=stops)
    tokens = said(body["prompt"], request, body["seed"])
    return tokens, "limit" if len(tokens) == count else "word"


def llama_own(body: dict[str, Any]) -> Any:
    tokens, stop = llama_said(body, body["n_predict"])
    return {
        "content": text_of(tokens), "tokens": tokens if body.get("return_tokens") else [], "stop_type": stop,
        "tokens_predicted": len(tokens), "tokens_evaluated": len(body["prompt"]), "generation_settings": {},
        "timings": {"predicted_n": len(tokens), "draft_n": 6, "draft_n_accepted": 4},
    }  # fmt: skip


def llama(body: dict[str, Any]) -> Any:
    own = llama_own({**body, "n_predict": body["max_tokens"]})
    tokens = own["tokens"] or letters().encode(own["content"]).ids
    entries = [{"id": token, "token": text_of([token]), "bytes": []} for token in tokens]
    choice = dict(text=own["content"], finish_reason="length" if own["stop_type"] == "limit" else "stop",
                  logprobs={"content": entries} if body.get("logprobs") else None)  # fmt: skip
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(tokens)}
    verbose = {"__verbose": own} if body.get("verbose") else {}
    return completion(**choice) | {"usage": usage, "timings": own["timings"], **verbose}


def old_llama(body: dict[str, Any]) -> Any:
    """Which knows no "verbose", and leaves out the last tokens where a stop string ended the text."""
    answer = llama({name: value for name, value in body.items() if name not in ("verbose", "return_tokens")})
    (choice,) = answer["choices"]
    if choice["finish_reason"] == "stop" and choice["logprobs"]:
        choice["logprobs"]["content"].pop()
    return answer


def sglang_own(body: dict[str, Any]) -> Any:
    settings = body["sampling_params"]
    asked = {**settings, "prompt": body["input_ids"], "max_tokens": settings["max_new_tokens"]}
    tokens = decoded(asked | {"seed": settings["sampling_seed"]})
    ended = "length" if len(tokens) == settings["max_new_tokens"] else "stop"
    return {
        "text": text_of(tokens), "output_ids": tokens,
        "meta_info": {
            "finish_reason": {"type": ended}, "prompt_tokens": len(body["input_ids"]), "completion_tokens": len(tokens),
            "spec_num_proposed_drafts": 9, "spec_num_correct_drafts": 5,
        },
    }  # fmt: skip


def text_only(body: dict[str, Any]) -> Any:
    return completion(text=text_of(decoded(body)))


def templated(messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = letters().encode("".join(each["content"] for each in messages) + "b").ids
    return ids


def chat(body: dict[str, Any]) -> Any:
    tokens = decoded(body | {"prompt": templated(body["messages"])})
    entries = [{"token": f"token_id:{token}"} for token in tokens]
    usage = {"prompt_tokens": len(templated(body["messages"])), "completion_tokens": len(tokens)}
    return completion(message={"content": text_of(tokens)}, logprobs={"content": entries}) | {"usage": usage}


def llama_chat(body: dict[str, Any]) -> Any:
    answer = llama(body | {"prompt": templated(body["messages"])})
    (choice,) = answer["choices"]
    return answer | {"choices": [{**choice, "message": {"content": choice.pop("text")}}]}


SPOKEN: dict[str, tuple[Answer | dict[str, Answer], str, str]] = {
    "vllm": (vllm, "OpenAI's completions", "token_ids"),
    "vllm, older": (old_vllm, "OpenAI's completions", "logprobs"),
    "openai": (plain, "OpenAI's completions", "logprobs"),
    "llama.cpp": ({"/v1/completions": llama}, "llama.cpp's completions", "__verbose.tokens"),
    "llama.cpp, older": ({"/v1/completions": old_llama}, "llama.cpp's completions", "logprobs"),
    "llama.cpp's own": ({"/completion": llama_own}, "llama.cpp's own protocol", "tokens"),
    "llama.cpp's own beside text": (
        {"/v1/completions": text_only, "/completion": llama_own}, "llama.cpp's own protocol", "tokens"
    ),
    "sglang": ({"/v1/completions": text_only, "/generate": sglang_own}, "SGLang's own protocol", "output_ids"),
    "text": ({"/v1/completions": text_only}, "OpenAI's completions", TEXT),
    "chat": ({"/v1/chat/completions": chat}, "OpenAI's chat", "logprobs"),
    "llama.cpp's chat": ({"/v1/chat/completions": llama_chat}, "llama.cpp's chat", "__verbose.tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOKEN)
def test_each_protocol_is_found_out_and_its_tokens_are_those_drawn(serve: Serve, name: str) -> None:
    answers, protocol, way = SPOKEN[name]
    subject = subject_of(serve(answers))
    asked = PROMPTS
    if subject.by_chat:
        messages = [[{"role": "user", "content": text}] for text in ("abc", "hello", "zz")]
        asked = [templated(each) for each in messages]
        subject.messages = dict(zip(map(tuple, asked), messages, strict=True))
    assert protocol in subject.spoken.told
    assert subject.spoken.answer.way == way
    for sample in subject.sample(asked, GREEDY, 0):
        assert list(sample.tokens) == greedy(gpt2(), torch.tensor(sample.prompt), 12)
        assert sample.doubt == (TEXT_ONLY if way == TEXT else "")
    one, same, other = (list(subject.sample(asked, SAMPLED, seed)) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("name", [name for name in SPOKEN if "chat" not in name and name != "text"])
def test_stops_are_asked_for_where_a_protocol_knows_them(serve: Serve, name: str) -> None:
    subject, prompt = subject_of(serve(SPOKEN[name][0])), PROMPTS[1]
    path = greedy(gpt2(), torch.tensor(prompt), 12)
    third = next(index for index in range(2, 12) if path[index] not in path[:index])
    ends = replace(GREEDY, eos_token_ids=(path[third],))
    stops = replace(GREEDY, stop_strings=(text_of(path[third : third + 1]),))
    assert subject.takes(GREEDY)
    assert subject.takes(ends) == (name in ("vllm", "vllm, older", "sglang"))
    assert subject.takes(stops) == (name != "llama.cpp, older")
    for request in filter(subject.takes, (ends, stops)):
        (sample,) = subject.sample([prompt], request, 0)
        assert (list(sample.tokens), sample.doubt) == (path[: third + 1], "")
    assert any(END_TOKENS in note for note in subject.notes) != subject.takes(ends)
    assert any("stop strings aren't tried" in note for note in subject.notes) != subject.takes(stops)


def test_llama_cpp_is_asked_for_the_filters_in_their_order_and_for_no_end_tokens(serve: Serve) -> None:
    server = serve({"/v1/completions": llama})
    subject = subject_of(server, eos_token_ids=frozenset({30}))
    request = replace(SAMPLED, top_k=3, min_p=0.1, temperature=0.7, eos_token_ids=(30,))
    list(subject.sample([[1, 2]], request, 0))
    body = server.bodies[-1]
    assert body["samplers"] == ["temperature", "top_k", "top_p", "min_p"]
    assert (body["top_k"], body["min_p"], body["temperature"], body["repeat_penalty"]) == (3, 0.1, 0.7, 1)
    assert not body.keys() & {"ignore_eos", "stop_token_ids", "logprobs", "repetition_penalty"}
    assert subject.takes(request)  # it knows the model's own end tokens


def test_tokens_that_logprobs_leave_out_are_a_doubt(serve: Serve) -> None:
    """llama.cpp has no entry for a token that ends inside a character."""

    def lacking(body: dict[str, Any]) -> Any:
        answer = llama({**body, "verbose": False})
        answer["choices"][0]["logprobs"]["content"].pop(1)
        return answer

    (sample,) = subject_of(serve(lacking)).sample([[1, 2]], GREEDY, 0)
    assert "the ids of 11 tokens where it counts 12" in sample.doubt


@pytest.mark.parametrize("elsewhere", [(500, b"broken"), None, b"<html>", [1]])
def test_what_another_path_does_is_no_matter_where_one_is_spoken(serve: Serve, elsewhere: Any) -> None:
    paths = dict.fromkeys(("/completion", "/generate"), lambda body: elsewhere)
    (sample,) = subject_of(serve({"/v1/completions": text_only, **paths})).sample([[1, 2]], GREEDY, 0)
    assert list(sample.tokens) == greedy(gpt2(), torch.tensor([1, 2]), 12)


# --- parameters that aren't taken

KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "stop"}


def strict(known: set[str], said: Callable[[list[str]], Any]) -> Answer:
    """A server that refuses whatever it doesn't know."""

    def answer(body: dict[str, Any]) -> Any:
        unknown = sorted(body.keys() - known)
        return (422, said(unknown)) if unknown else plain(body)

    return answer


@pytest.mark.parametrize(
    "refusal",
    [
        lambda unknown: {"detail": [{"type": "extra_forbidden", "loc": ["body", name]} for name in unknown]},
        lambda unknown: {"error": {"message": f"unknown parameter '{unknown[0]}'"}},
        lambda unknown: b"no",
    ],
    ids=["all by name", "one by name", "none by name"],
)
def test_what_a_strict_server_refuses_is_left_out_and_told(serve: Serve, refusal: Callable[[list[str]], Any]) -> None:
    server = serve(strict(KNOWN, refusal))
    subject = subject_of(server)
    (sample,) = subject.sample(PROMPTS[:1], GREEDY, 0)
    assert list(sample.tokens) == greedy(gpt2(), torch.tensor(PROMPTS[0]), 12)
    assert sample.doubt == ""
    assert server.bodies[-1].keys() == KNOWN - {"stop"}
    notes = " | ".join(subject.notes)
    assert "min_p, repetition_penalty, top_k: whether the server's own settings" in notes
    assert "ignore_eos: an answer may end" in notes
    assert END_TOKENS in notes
    assert not subject.takes(replace(GREEDY, eos_token_ids=(3,)))
    with pytest.raises(EndpointFailed, match="doesn't take top_k, which is 5: leave it out"):
        list(subject.sample(PROMPTS[:1], replace(SAMPLED, top_k=5), 0))


def test_a_server_that_refuses_everything(serve: Serve) -> None:
    with pytest.raises(EndpointRefused, match="/v1/completions answered 422"):
        subject_of(serve(strict({"model"}, lambda unknown: b"no")))
    with pytest.raises(EndpointRefused, match="/v1/completions answered 404"):
        subject_of(serve({}))


def test_end_tokens_that_a_server_doesn_t_know_are_not_tried_and_no_fault(serve: Serve) -> None:
    plan = Plan(request=GREEDY, repeats=0, greedy=4, stopping=4)
    for answers in (vllm, llama):
        server = serve(answers)
        report = verify(subject_of(server), Reference(gpt2(), letters()), PROMPTS, plan)
        assert report.verdict == "PASS", report.reasons
        assert any("stop_token_ids" in body for body in server.bodies[12:]) == (answers is vllm)


def deaf(body: dict[str, Any]) -> Any:
    """A fault: end tokens are heeded at the first token of a block of three only."""
    tokens = decoded({**body, "ignore_eos": True})
    ends = [index for index in range(0, len(tokens), 3) if tokens[index] in body.get("stop_token_ids", ())]
    return completion(token_ids=tokens[: ends[0] + 1] if ends else tokens, finish_reason="stop" if ends else "length")


def test_a_server_that_passes_over_an_end_token_inside_a_block_isn_t_let_off(serve: Serve) -> None:
    """It knows end tokens, as the probe's first token shows: so passing over one is no lack of the protocol."""
    subject = subject_of(serve(deaf))
    assert subject.takes(replace(GREEDY, eos_token_ids=(3,)))
    plan = Plan(request=GREEDY, repeats=0, greedy=4, stopping=4)
    report = verify(subject, Reference(gpt2(), letters()), PROMPTS, plan)
    assert report.verdict == "FAIL"
    assert any("after its end token" in reason for reason in report.reasons)


def test_a_wrong_token_of_llama_cpp_is_a_fault(serve: Serve) -> None:
    def wrong(body: dict[str, Any]) -> Any:
        answer = llama(body)
        if body["max_tokens"] > 4:
            answer["__verbose"]["tokens"][5] = (answer["__verbose"]["tokens"][5] + 1) % 31
        return answer

    plan = Plan(request=GREEDY, repeats=0, greedy=4, stopping=0)
    report = verify(subject_of(serve(wrong)), Reference(gpt2(), letters()), PROMPTS, plan)
    assert report.verdict == "FAIL"
    assert report.reasons[0].startswith("greedy")


# --- prompts


def test_a_prompt_that_the_server_makes_another_of_is_a_doubt(serve: Serve) -> None:
    def longer(body: dict[str, Any]) -> Any:
        answer = vllm(body)
        answer["usage"]["prompt_tokens"] += 1
        return answer

    (sample,) = subject_of(serve(longer)).sample([[1, 2]], GREEDY, 0)
    assert "the server counts 3 tokens in a prompt of 2" in sample.doubt


def test_a_chat_endpoint_without_messages_is_refused(serve: Serve) -> None:
    with pytest.raises(EndpointFailed, match="takes messages"):
        list(subject_of(serve({"/v1/chat/completions": chat})).sample(PROMPTS, GREEDY, 0))


@pytest.mark.parametrize("template", ["{{ messages[-1].content }}b", "{{ messages[-1].content }}", None])
def test_a_chat_endpoint_is_judged_by_the_targets_own_template(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str | None
) -> None:
    folder = save(gpt2(), tmp_path / "target")
    if template:
        (folder / "chat_template.jinja").write_text(template)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "hello")))
    server = serve({"/v1/chat/completions": chat})
    arguments = ("--target", folder, "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out", "--repeats", 0,
                 "--max-new-tokens", 8, "--greedy", 2, "--stopping", 0)  # fmt: skip
    status = sybil("verify", *arguments, "--endpoint", server.url, "--concurrency", 2, "--header", "X-Team: lore")
    captured = capsys.readouterr()
    assert all(headers["X-Team"] == "lore" for headers in server.headers)
    if template is None:
        assert status == 2
        assert "has no chat template" in captured.err
    elif template.endswith("b"):
        assert status == 0
        assert f"asked by OpenAI's chat, {server.url}/chat/completions gives token ids (logprobs)" in captured.out
        assert "stop_token_ids" not in captured.out
        asked = [body["messages"] for body in server.bodies[-2:]]  # two at once, in whichever order they come
        assert [{"role": "user", "content": "hello"}] in asked
    else:  # the server's template isn't the target's
        assert status == 3
        assert "it was asked another one" in captured.out


# --- several at once


def test_answers_that_come_at_once_are_in_order(serve: Serve) -> None:
    together = threading.Barrier(3, timeout=20)

    def answer(body: dict[str, Any]) -> Any:
        if body["max_tokens"] == 12:  # no probe
            together.wait()  # which no server is past before three are asked for
            time.sleep(0.02 * (PROMPTS.index(body["prompt"]) % 2))
        return vllm(body)

    subject = subject_of(serve(answer), concurrency=3)
    asked = PROMPTS[:3] * 2
    samples = list(subject.sample(asked, SAMPLED, 0))
    assert [list(sample.prompt) for sample in samples] == asked
    alone = list(subject_of(serve(vllm)).sample(asked, SAMPLED, 0))
    assert samples == alone


def test_no_more_than_asked_for_are_under_way(serve: Serve) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def answer(body: dict[str, Any]) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return completion(token_ids=[1] * body["max_tokens"])

    server = serve(answer)
    list(subject_of(server, concurrency=4).sample(PROMPTS * 4, GREEDY, 0))
    assert 2 <= most <= 4
    most = 0
    list(subject_of(server).sample(PROMPTS, GREEDY, 0))
    assert most == 1
    for wrong in (0, 257, 1.5):
        with pytest.raises(InvalidSetting, match="concurrency is"):
            subject_of(server, concurrency=wrong)


# --- a server that is lost


@pytest.mark.parametrize("loss", [None, (503, {"error": "loading"}), (502, b""), (429, b"slowly")])
def test_a_server_that_comes_back_loses_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch, loss: Any) -> None:
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    count = 0

    def answer(body: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        return loss if count % 3 else vllm(body)

    server = serve(vllm)
    subject = subject_of(server, concurrency=2)
    wanted = list(subject.sample(PROMPTS, SAMPLED, 0))
    server.answers = answer
    assert list(subject.sample(PROMPTS, SAMPLED, 0)) == wanted


def test_a_server_that_stays_away_ends_the_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "PATIENCE", 0.1)
    server = serve(vllm)
    subject = subject_of(server)
    server.answers = lambda body: None
    with pytest.raises(EndpointLost, match="can't be reached"):
        list(subject.sample(PROMPTS, GREEDY, 0))
    server.answers = lambda body: (500, b"broken")  # which is an answer
    asked = len(server.bodies)
    with pytest.raises(EndpointRefused):
        list(subject.sample(PROMPTS, GREEDY, 0))
    assert len(server.bodies) == asked + 1


# --- headers


def test_headers_go_to_the_server_and_into_no_message(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    said = "no: Bearer sk-mine, sk-mine, topsecret"
    server = serve(lambda body: (403, {"error": {"message": said}}))
    given = ("authorization: Bearer sk-mine", "X-Team:topsecret", "X-Short: a")
    with pytest.raises(EndpointRefused) as caught:
        Server(server.url, headers=given).ask("/completions", {})
    assert "no: [authorization], [authorization], [X-Team]" in str(caught.value)
    sent = server.headers[0]
    assert (sent["authorization"], sent["X-Team"], sent["X-Short"]) == ("Bearer sk-mine", "topsecret", "a")
    assert "sk-environment" not in str(sent)


@pytest.mark.parametrize(
    "line",
    [
        "sk-secret", ": sk-secret", "X Y: sk-secret", "X\u00e9: sk-secret", "X: sk-se\ncret", "X: sk-secr\u00e9t", "X:",
        "Content-Length: 7", "transfer-encoding: chunked", "Accept-Encoding: gzip", "X: sk-se\x00cret", "",
    ],
)  # fmt: skip
def test_headers_that_are_none(line: str) -> None:
    with pytest.raises(InvalidSetting, match="header") as caught:
        Server("http://127.0.0.1:9/v1", headers=(line,))
    assert "sk-" not in str(caught.value)
    with pytest.raises(InvalidSetting, match="twice"):
        Server("http://127.0.0.1:9/v1", headers=("X-Team: a", "x-team: b"))


def test_headers_and_concurrency_are_for_servers(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (("--header", "X: y"), ("--concurrency", 2)):
        assert sybil("verify", *given) == 2
        assert "add --endpoint" in capsys.readouterr().err


# --- counts of speculation


def counted(subject: endpoint.EndpointSubject, asked: list[list[int]] = PROMPTS) -> Speculation | None:
    """What its answers say, all together."""
    seen = Seen()
    for sample in subject.sample(asked, GREEDY, 0):
        seen.add(sample.places, sample.speculation)
    return seen.of(subject)


def test_what_the_answers_say_of_speculation_is_summed(serve: Serve) -> None:
    for name, each in (("llama.cpp", (6, 4)), ("llama.cpp's own", (6, 4)), ("sglang", (9, 5))):
        subject = subject_of(serve(SPOKEN[name][0]))
        found = counted(subject)
        assert (found.drafted, found.accepted) == (4 * each[0], 4 * each[1])

    def counting(details: Any) -> Speculation | None:
        server = serve(lambda body: vllm(body) | {"usage": {"completion_tokens_details": details}})
        return counted(subject_of(server), PROMPTS[:1])

    assert counting({"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 2}) == Speculation(
        5, 3, "the usage of its answers"
    )
    for nothing in ({"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}, {}, None, [1],
                    {"accepted_prediction_tokens": -1, "rejected_prediction_tokens": 9},
                    {"accepted_prediction_tokens": "3", "rejected_prediction_tokens": 2}):  # fmt: skip
        assert counting(nothing) is None


def test_llama_cpp_without_a_draft_counts_none(serve: Serve) -> None:
    def undrafted(body: dict[str, Any]) -> Any:
        return llama(body) | {"timings": {"predicted_n": 12}}

    found = counted(subject_of(serve(undrafted)))
    assert found == Speculation(0, 0, "the timings of its answers")
    assert "speculation not observed: the decoder counts no drafted token" in found.told
    assert not found.observed


METRICS = """# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="a b"}} 7.0
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="a b"}} {drafted}
vllm:spec_decode_num_draft_tokens_total{{engine="1",model_name="a b"}} 1.0
vllm:spec_decode_num_draft_tokens_created{{engine="0"}} 1.7e+09
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="a b"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} 99.0
"""


def test_counters_are_read_before_and_after(serve: Serve) -> None:
    first, then = (METRICS.format(drafted=d, accepted=a).encode() for d, a in (("1e+02", "40.0"), ("160.0", "70.0")))
    server = serve(vllm, metrics=first)
    subject = subject_of(server)
    list(subject.sample(PROMPTS, GREEDY, 0))
    server.metrics = then
    found = subject.speculation
    assert (found.drafted, found.accepted) == (60, 30)
    assert found.told.startswith("speculation: 60 tokens drafted, 30 (50%) accepted")
    assert counters.parsed(first.decode().replace("vllm:", "llamacpp:")).drafted == 101
    for gone in ((404, b""), b"", METRICS.format(drafted=1, accepted=0).encode()):  # the server began anew
        server.metrics = gone
        assert subject.speculation is None


@pytest.mark.parametrize(
    "text",
    [
        "", "vllm:spec_decode_num_draft_tokens_total 5", "\x00\xff", METRICS.format(drafted="nan", accepted=1),
        METRICS.format(drafted="x", accepted=1), METRICS.format(drafted=1, accepted=5),
        METRICS.format(drafted=-1, accepted=-2), METRICS.format(drafted="1e400", accepted=1),
        METRICS.format(drafted="9" * 5000, accepted=1), "a" * 10**6, "a:spec_decode_num_draft_tokens{" * 10**4,
    ],
)  # fmt: skip
def test_counters_that_are_none(text: str) -> None:
    assert counters.parsed(text) is None


def test_a_draft_of_which_nothing_is_accepted_is_told_apart() -> None:
    assert "of 9 drafted tokens the decoder accepted none" in Speculation(9, 0).told


# --- servers that do harm

ODD = [None, True, -1, 2**70, 1.5, "", "\ud800", [], [None], [[]], [1, "a"], {}, {"a": 1}]


def odd_answers() -> Iterator[Any]:
    body = {"prompt": [1, 2], "input_ids": [1, 2], "max_tokens": 4, "n_predict": 4, "temperature": 0.0, "seed": 0,
            "return_tokens": True, "verbose": True, "logprobs": 1,
            "sampling_params": {"max_new_tokens": 4, "temperature": 0.0, "sampling_seed": 0}}  # fmt: skip
    for whole in (llama(body), llama_own(body), sglang_own(body)):
        for odd in ODD:
            for name, value in whole.items():
                yield whole | {name: odd}
                if isinstance(value, dict):
                    yield from (whole | {name: value | {each: odd}} for each in value)


def test_odd_answers_are_an_answer_or_one_line_probed_or_asked(serve: Serve) -> None:
    answers = list(odd_answers())
    server = serve(lambda body: completion(token_ids=[1]))
    asked = subject_of(server)
    samples, refusals = list[Sample](), list[str]()
    for answer in answers:
        server.answers = lambda body, answer=answer: answer
        try:
            samples += asked.sample([[1, 2]], GREEDY, 0)
        except EndpointFailed as error:
            refusals.append(str(error))
    for answer in answers[::7]:
        server.answers = lambda body, answer=answer: answer
        try:
            subject = subject_of(server, "tiny")
            samples += subject.sample([[1, 2]] if not subject.by_chat else [], GREEDY, 0)
            assert all(note.isprintable() for note in subject.notes)
        except EndpointFailed as error:
            refusals.append(str(error))
    assert len(samples) > 100
    assert len(refusals) > 20
    assert all(type(token) is int and 0 <= token < 2**31 for sample in samples for token in sample.tokens)
    assert all(line.isprintable() for line in [*refusals, *(sample.doubt for sample in samples)])


def test_an_end_at_a_special_token_is_told_by_name(serve: Serve) -> None:
    tokenizer = letters()
    tokenizer.add_special_tokens(["<|im_end|>"])
    server = serve(lambda body: completion(token_ids=[1, 31], finish_reason="stop"))
    (sample,) = endpoint.EndpointSubject(Server(server.url), None, tokenizer).sample([[1]], GREEDY, 0)
    assert "ended at '<|im_end|>' (token id 31)" in sample.doubt
