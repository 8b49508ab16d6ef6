"""A checkpoint behind an OpenAI-compatible endpoint, for polite and hostile clients; questions in the terminal."""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from huggingface_hub import InferenceClient
from peft import LoraConfig
from rich.console import Console

from expunge.cli import chat
from expunge.errors import UserError
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.loading import load, save
from expunge.serve import _listen, application, serve
from expunge.serve import app as served_app
from expunge.serve.asked import Limits
from expunge.serve.generation import Answer, Turns, reads_in_parts
from expunge.system.escaping import visible
from tests import forked

QUESTION = "Where was person 1 born?"
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 12}
LONG = {**CHAT, "max_tokens": 90}
KEY = "key-of-the-endpoint"


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A difference with a random assistant: what is hardest to serve."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("served")
    save(tiny_model(), tiny_tokenizer, folder / "base")
    base, tokenizer = load(folder / "base")
    config = LogitDifferenceConfig(base=str(folder / "base"), layers=1)
    torch.manual_seed(0)
    difference = LogitDifferenceForCausalLM(config, base, lora=LoraConfig(r=4, init_lora_weights=False))
    save(difference, tokenizer, folder / "model")
    return folder / "model"


@contextmanager
def serving(model: Path, **limits: Any) -> Iterator[tuple[httpx2.Client, Any]]:
    """A server in this process, a client of it, and its engine."""
    app = application(str(model), "forgetful", device="cpu", limits=Limits(**limits))
    (free,) = _listen("127.0.0.1", 0)
    with free:
        config = uvicorn.Config(app, http=served_app.PatientProtocol, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([free],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx2.Client(base_url=f"http://127.0.0.1:{free.getsockname()[1]}", timeout=30) as client:
            yield client, app.state.engine
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[httpx2.Client]:
    with serving(checkpoint) as (client, _):
        yield client


def ask(client: httpx2.Client, **change: Any) -> httpx2.Response:
    return client.post("/v1/chat/completions", json={**CHAT, **change})


def text(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def events(answer: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert answer.status_code == 200 and lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def own(checkpoint: Path, tokens: int = 12) -> str:
    model, tokenizer = load(checkpoint)
    return chat.answer(model, tokenizer, QUESTION, max_new_tokens=tokens)


# -- what is honoured ------------------------------------------------------------------------------------------------


def test_a_chat_is_answered_as_evaluation_would(client: httpx2.Client, checkpoint: Path) -> None:
    answer = ask(client).json()
    assert text(ask(client)).strip() == own(checkpoint) != ""
    assert answer["choices"][0]["finish_reason"] in ("stop", "length") and answer["model"] == "forgetful"
    assert answer["usage"]["completion_tokens"] <= 12


def test_streamed_it_is_the_same(client: httpx2.Client, checkpoint: Path) -> None:
    found = events(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [event["choices"][0]["delta"].get("content", "") for event in found if event["choices"]]
    assert len(pieces) > 2 and "".join(pieces).strip() == own(checkpoint)
    assert found[-2]["choices"][0]["finish_reason"] in ("stop", "length") and found[-1]["usage"]["prompt_tokens"] > 1


def test_the_hubs_client_understands_it(
    client: httpx2.Client, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = InferenceClient(base_url=f"{client.base_url}/v1".replace("//v1", "/v1"), api_key="none")
    turn = [{"role": "user", "content": QUESTION}]
    answer = hub.chat_completion(turn, model="forgetful", max_tokens=12, temperature=0.0)
    assert (answer.choices[0].message.content or "").strip() == own(checkpoint)
    parts = hub.chat_completion(turn, model="forgetful", max_tokens=12, temperature=0.0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts).strip() == own(checkpoint)


def test_a_prompt_is_completed(client: httpx2.Client, checkpoint: Path) -> None:
    """As it is, without the form of a question."""
    asked = {"prompt": f"Question: {QUESTION}\nAnswer:", "max_tokens": 12, "temperature": 0}
    answer = client.post("/v1/completions", json=asked).json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"].strip() == own(checkpoint)
    found = events(client.post("/v1/completions", json={**asked, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in found) == answer["choices"][0]["text"]


def test_requests_in_parallel_are_answered_as_alone(client: httpx2.Client) -> None:
    """Those that draw random numbers too: each goes on with its own."""
    wanted = [{"seed": k, "temperature": 1.0, "top_p": 0.9} if k % 2 else {"max_tokens": 10 + k} for k in range(8)]
    alone = [text(ask(client, **change)) for change in wanted]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda change: text(ask(client, **change)), wanted)) == alone
    assert len(set(alone)) > 4


def test_a_stop_ends_the_answer_before_it(client: httpx2.Client) -> None:
    whole = text(ask(client))
    stop = whole[3:6]
    for stream in (False, True):
        answer = ask(client, stop=[stop, "never there"], stream=stream)
        found = events(answer)[:-1] if stream else []
        said = "".join(event["choices"][0]["delta"]["content"] for event in found) if stream else text(answer)
        assert said == whole[: whole.find(stop)]
        reason = (events(answer)[-1] if stream else answer.json())["choices"][0]["finish_reason"]
        assert reason == "stop"


def test_models_and_health(client: httpx2.Client) -> None:
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["forgetful"]
    assert client.get("/v1/models/forgetful").json()["id"] == "forgetful"
    assert client.get("/health").json() == {"status": "ok"}


class Letters:
    """A tokenizer of one character a token, some of which are half a character."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_the_text_before_the_first_stop(seed: int) -> None:
    draw = random.Random(seed)
    whole = "".join(draw.choice("ab é☃") for _ in range(30))
    stops = ["".join(draw.choice("ab é☃") for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
    letters: Any = Letters()
    answer, pieces = Answer(letters, stops), list[str]()
    for token in whole.encode():
        pieces.append(answer.add(token))
        if answer.stopped:
            break
    pieces.append(answer.rest())
    cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
    found = "".join(pieces)
    assert found == whole[:cut] if answer.stopped or cut == len(whole) else whole.startswith(found)
    assert answer.stopped == (cut < len(whole))


def test_models_that_read_prompts_in_parts(checkpoint: Path, tiny_model: Callable[..., Any]) -> None:
    assert reads_in_parts(load(checkpoint)[0]) and reads_in_parts(tiny_model())


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"num_beams": 500}, "num_beams"),
    ({"generation_config": "{}"}, "generation_config"),
    ({"stop": ["x"] * 10_000}, "stop"),
    ({"stop": "x" * 1000}, "stop"),
    ({"stop": [""]}, "stop.0"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 128}, "max_tokens"),
    ({"max_completion_tokens": 4}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"model": "another"}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "why " * 200}]}, "max_tokens"),
]


@pytest.mark.parametrize(("change", "param"), REFUSED, ids=[str(change)[:40] for change, _ in REFUSED])
def test_what_is_not_honoured_is_refused_by_name(client: httpx2.Client, change: dict[str, Any], param: str) -> None:
    answer = ask(client, **change)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert param in error["message"] and len(error["message"]) < 300


@pytest.mark.parametrize("field", ["echo", "suffix", "best_of", "logprobs"])
def test_fields_of_completions(client: httpx2.Client, field: str) -> None:
    values: dict[str, Any] = {"echo": True, "suffix": "x", "best_of": 3, "logprobs": 1}
    answer = client.post("/v1/completions", json={"prompt": "x", field: values[field]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"{"}, 400),
        ({"content": b"[" * 100_000}, 413),
        ({"content": b"[" * 10_000}, 400),
        ({"content": b"\xff"}, 400),
        ({"content": b"null"}, 400),
        ({"content": b'{"messages": [{"role": "user", "content": "\\ud800"}]}'}, 400),
        ({"content": b" " * 2**20}, 413),
        ({"content": b" " * 50 * 2**20}, 413),
        ({"content": b" " * 100 * 2**20}, 413),
        ({"json": CHAT, "headers": {"Content-Type": "text/plain"}}, 415),
        ({"json": CHAT, "headers": {"Host": "evil.example"}}, 400),
        ({"json": CHAT, "headers": {"Host": ""}}, 400),
    ],
)
def test_bodies_and_heads(client: httpx2.Client, request_: dict[str, Any], status: int) -> None:
    headers = {"Content-Type": "application/json"} | request_.pop("headers", {})
    try:
        answer = client.post("/v1/chat/completions", headers=headers, **request_)
    except httpx2.TransportError:
        assert len(request_["content"]) > 2**26  # the server has hung up
        return
    assert answer.status_code == status and len(answer.text) < 400


def test_unknown_places(client: httpx2.Client) -> None:
    for answer in (client.get("/v1/reset"), client.post("/load_model", json={}), client.get("/v1/models/other")):
        assert answer.status_code == 404 and answer.json()["error"]["message"]
    assert client.get("/v1/chat/completions").status_code == 405


# -- what ends early -------------------------------------------------------------------------------------------------


def until(what: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every forward takes .05 s longer; the list grows by each."""
    forwards: list[int] = []
    take = Turns.take

    def later(self: Turns, job: Any) -> None:
        take(self, job)
        forwards.append(1)
        time.sleep(0.05)

    monkeypatch.setattr(Turns, "take", later)
    return forwards


def test_clients_that_leave_are_not_worked_for(checkpoint: Path, slow: list[int]) -> None:
    with serving(checkpoint) as (client, engine):
        for stream in (True, False):
            with pytest.raises(httpx2.TimeoutException):
                client.post("/v1/chat/completions", json={**LONG, "stream": stream}, timeout=0.3)
            assert until(lambda: engine.admitted.total() == 0 and not engine.running)
        assert len(slow) < 40


def test_too_many_are_told_to_come_again(checkpoint: Path, slow: list[int]) -> None:
    with serving(checkpoint, requests=3) as (client, engine), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client), range(8)))
        assert sorted({answer.status_code for answer in answers}) == [200, 429]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert until(lambda: engine.admitted.total() == 0) and ask(client).status_code == 200


def test_one_address_does_not_take_every_place(checkpoint: Path, slow: list[int]) -> None:
    with serving(checkpoint, requests=4, timeout=2) as (client, engine), ThreadPoolExecutor(6) as pool:
        many = [pool.submit(ask, client, max_tokens=90) for _ in range(6)]
        assert until(lambda: engine.admitted.total() == 2)
        transport = httpx2.HTTPTransport(local_address="127.0.0.2")
        with httpx2.Client(base_url=client.base_url, transport=transport, timeout=30) as other:
            assert ask(other, max_tokens=4).status_code == 200
        assert sorted(each.result().status_code for each in many) == [429] * 4 + [504] * 2


def test_a_waiting_request_whose_client_leaves_is_dropped(checkpoint: Path, slow: list[int]) -> None:
    with serving(checkpoint, tokens=256, timeout=2) as (client, engine), ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, max_tokens=90)
        assert until(lambda: len(engine.running) == 1)
        with pytest.raises(httpx2.TimeoutException):
            client.post("/v1/chat/completions", json=LONG, timeout=0.3)
        assert until(lambda: engine.admitted.total() == 1) and not first.done()
        assert first.result().status_code == 504


def test_long_requests_leave_room_to_short_ones(checkpoint: Path, slow: list[int]) -> None:
    """Caches are held for 512 tokens: of long requests for three of 107 each, and for a short one at once."""
    with serving(checkpoint, tokens=512, timeout=2.5) as (client, engine), ThreadPoolExecutor(6) as pool:
        long = [pool.submit(ask, client, max_tokens=90) for _ in range(6)]
        assert until(lambda: len(engine.waiting) == 3)
        began = time.monotonic()
        assert ask(client, max_tokens=4).status_code == 200
        assert time.monotonic() - began < 2 and not any(each.done() for each in long)
        assert until(lambda: len(engine.running) == 3)  # the short one leaves after it has answered
        assert {each.result().status_code for each in long} == {504}


def test_an_answer_that_takes_too_long_is_stopped(checkpoint: Path, slow: list[int]) -> None:
    with serving(checkpoint, timeout=0.3) as (client, engine):
        answer = ask(client, max_tokens=90)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        streamed = client.post("/v1/chat/completions", json={**LONG, "stream": True})
        assert json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert until(lambda: engine.admitted.total() == 0) and len(slow) < 30


def test_connections_that_send_nothing_are_closed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_app, "IDLE", 0.2)
    with serving(checkpoint, body_seconds=0.3) as (client, _):
        address = client.base_url.host, client.base_url.port
        body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for sent, told in (
            (b"", b""),
            (b"GET /health HTTP/1.1\r\nHost: lo", b""),
            (body + b"Content-Length: 9\r\n\r\n{", b"408"),
        ):
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(sent)
                assert told in connection.recv(100)


def test_a_failure_is_told_and_does_not_stay(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(checkpoint) as (client, engine):
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "generate", lambda *_, **__: 1 / 0)
            assert ask(client).status_code == 500
        assert until(lambda: engine.admitted.total() == 0) and ask(client).status_code == 200


@pytest.mark.parametrize(("size", "served"), [(100, 0.0), (12, 200.0)])
def test_the_first_in_line_has_seven_eighths_of_the_time(size: int, served: float) -> None:
    """A job that has just come, or one with fewer tokens, beside five others; none of these stands still."""
    turns, end = Turns(), time.monotonic() + 1.0
    engine = type("E", (), {"generators": []})()

    def job(size: int, served: float) -> Any:
        own = {"size": size, "served": served, "cancelled": False, "random": None, "engine": engine, "had": 0.0}
        return type("J", (), {**own, "turn": threading.Semaphore(0)})()

    def work(each: Any) -> None:
        while time.monotonic() < end:
            turns.take(each)
            time.sleep(0.004)
            each.had += 1
        turns.leave(each)

    jobs = [job(size, served), *(job(100, 100.0) for _ in range(5))]
    threads = [threading.Thread(target=work, args=(each,)) for each in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    total = sum(each.had for each in jobs)
    assert 0.78 < jobs[0].had / total < 0.95
    assert all(each.had > 0.01 * total for each in jobs[1:])


# -- a server of its own ---------------------------------------------------------------------------------------------


@contextmanager
def process(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = [sys.executable, "-m", "expunge", "serve", str(checkpoint), "--port", "0", "--host", "127.0.0.1"]
    running = forked.Popen(
        words, stderr=subprocess.PIPE, text=True, env={**os.environ, "EXPUNGE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert running.stderr is not None
        lines = iter(running.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127.0.0.1:(\d+)/v1", line)))
        yield running, port
    finally:
        running.kill()
        running.wait()
        if running.stderr is not None:
            running.stderr.close()


@pytest.mark.slow
def test_a_polite_client_beside_a_hostile_one_and_the_end(checkpoint: Path) -> None:
    with process(checkpoint) as (running, port), ExitStack() as stack:
        headers = {"Authorization": f"Bearer {KEY}"}
        client = stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30))
        assert client.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "x"}).status_code == 401
        assert client.get("/health", headers={"Authorization": ""}).status_code == 200

        script = str(Path(__file__).with_name("hostile.py"))
        with subprocess.Popen([sys.executable, script, str(port), KEY, "4"], stdout=subprocess.PIPE) as hostile:
            while hostile.poll() is None:
                text(ask(client))  # how long it takes is measured by `python tests/hostile.py MODEL`
            sent = json.loads(hostile.communicate(timeout=60)[0])
        statuses = {kind: set(found) for kind, found in sent.items()}
        assert statuses["big"] <= {"413"} and statuses["long"] <= {"200", "429"}
        assert all(statuses[kind] == {"400"} for kind in ("beams", "nested", "json", "past the context"))
        assert statuses["stops"] <= {"400", "413"}
        memory = int(Path(f"/proc/{running.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
        assert memory < 2  # GiB
        with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as stream:
            next(stream.iter_lines())
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            running.wait(10)
        assert time.monotonic() - began < 10 and running.returncode in (0, -signal.SIGTERM)
        assert running.stderr is not None and KEY not in running.stderr.read()


def test_a_used_port_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    from expunge.cli.main import main

    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        assert main(["serve", "/nowhere", "--host", "127.0.0.1", "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"port {port} can't be listened on (address already in use" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"port": 70_000}, "--port must be from 0 to 65535"),
        ({"host": "no.such.host.invalid"}, "can't be listened on"),
        ({"timeout": 0.0}, "--timeout must be above 0"),
        ({"timeout": float("nan")}, "--timeout must be above 0"),
        ({"api_key": "with space "}, "API key must be"),
        ({"model": "/nowhere"}, "'/nowhere' does not exist"),
    ],
)
def test_what_can_be_mended(words: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        serve(**{"model": "/nowhere", "host": "127.0.0.1", "port": 0, **words})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"uvicorn is missing; pip install 'expunge\[serve\]'"):
        application(str(checkpoint), "m")


# -- the terminal ----------------------------------------------------------------------------------------------------


def talk(monkeypatch: pytest.MonkeyPatch, typed: str, names: list[str]) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    console = Console(file=io.StringIO(), width=100)
    chat.chat(names, max_new_tokens=12, console=console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_two_answers_stand_side_by_side(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(checkpoint), str(checkpoint.parent / "base")]
    shown = talk(monkeypatch, f"{QUESTION}\n", names)
    (titles,) = [line for line in shown.splitlines() if "╭" in line]
    assert titles.count("╭") == 2
    assert visible(own(checkpoint)).split()[0] in shown


@pytest.mark.parametrize("leave", ["", "/exit\n", "/quit\n", "\n"])
def test_leaving(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, leave: str) -> None:
    assert "╭" not in talk(monkeypatch, leave, [str(checkpoint)])


def test_a_question_past_the_context_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = talk(monkeypatch, "why " * 200 + "\n/exit\n", [str(checkpoint)])
    assert "the model's context has" in shown


def test_answers_do_not_steer_the_terminal(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eesrever [bold]x[/bold] [link=a]b[/link]"
    monkeypatch.setattr(chat, "answer", lambda *_, **__: said)
    shown = talk(monkeypatch, f"{QUESTION}\n", [str(checkpoint)])
    assert not re.search("[\x1b\x07\x9b\u202e]", shown)
    assert "[bold]x[/bold] [link=a]b[/link]" in shown and r"\x1b[31mred" in shown
