"""Variants that a model writes: its replies, interruptions, an endpoint over a real socket, and a model in process."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from expunge.data import augment
from expunge.errors import UserError
from expunge.modeling.loading import save
from expunge.pipeline import writer

FORGET = [{"question": f"Where was person {i} born?", "answer": f"Person {i} was born in Oslo."} for i in range(10)]
SIZES = {"paraphrases": 2, "perturbations": 1, "seed": 0}


class Endpoint:
    """Answers chat completions on a port of its own; `reply(prompt, seed)` gives the text or an error's status."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.echo = False
        self.reply: Callable[[str, int], str | int] = lambda prompt, seed: "\n".join(
            json.dumps({"question": f"Q {seed} {i}?", "answer": f"A {seed} {i}."}) for i in range(2)
        )
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.asked.append(body)
                endpoint.keys.add(self.headers.get("authorization"))
                if endpoint.echo:
                    self.send_response(401)
                    self.end_headers()
                    self.wfile.write(f"no {self.headers.get('authorization')} for {body}".encode())
                    return
                said = endpoint.reply(body["messages"][0]["content"], body["seed"])
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                frame = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(frame).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_every_row_gets_what_was_asked_for(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    out = tmp_path / "new" / "variants.jsonl"
    variants = writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)
    for row in range(10):
        assert [v.kind for v in variants if v.row == row] == ["paraphrase", "paraphrase", "perturbation"]
    assert all(v.text["question"] == FORGET[v.row]["question"] for v in variants if v.kind == "perturbation")
    assert len(endpoint.asked) == 20 and endpoint.keys == {"Bearer secret"}
    assert {body["model"] for body in endpoint.asked} == {"m"}
    writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)
    assert len(endpoint.asked) == 20  # all is there


@pytest.mark.parametrize("key", ["", None])
def test_without_a_key_none_is_sent_and_the_hub_may_be_offline(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """The hub's own token least of all."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False) if key is None else monkeypatch.setenv("OPENAI_API_KEY", key)
    writer.compose(FORGET, model="m", url=endpoint.url, out=tmp_path / "variants.jsonl", **SIZES)
    assert endpoint.keys == {None}


@pytest.mark.parametrize("words", ["Where was person 3 born?", "no: \\nPerson 3 was born in Oslo."])
def test_an_error_that_repeats_the_row_is_not_shown(endpoint: Endpoint, words: str) -> None:
    assert "Oslo" not in writer._without([writer._Task(0, FORGET[3], "paraphrase", 1).prompt()], words)
    assert writer._without(["Question: Who?"], "no such model") == "no such model"


def test_the_same_seed_asks_the_same(endpoint: Endpoint, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for out in files:
        writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)
    assert files[0].read_text() == files[1].read_text()


def test_an_interrupted_call_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "variants.jsonl"
    writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)
    whole, asked = out.read_text(), len(endpoint.asked)
    out.write_text("\n".join(whole.splitlines()[:12]) + '\n{"row": 4, "kin')
    assert len(writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)) == 30
    assert asked < len(endpoint.asked) < 2 * asked


def test_what_models_put_around_json_is_passed_over(endpoint: Endpoint, tmp_path: Path) -> None:
    """Thoughts, a code fence, numbers, the form itself, a repeated line and the true answer are no variants."""
    endpoint.reply = lambda prompt, seed: (
        'First {"answer": "no"}</think>Sure!\n```json\n1. {"question": "...", "answer": "..."}\n'
        f'{{"question": "Q {seed}?", "answer": "A\n{seed}"}},\n{{"question": "q {seed}", "answer": "A\n{seed}."}}\n'
        '{"question": "Where was person 0 born?", "answer": "person 0 was born in oslo"}\n{"answer": 3} {broken\n```'
    )
    out = tmp_path / "variants.jsonl"
    variants = writer.compose(FORGET[:1], model="m", url=endpoint.url, out=out, **{**SIZES, "perturbations": 0})
    assert [v.text["question"][0] for v in variants] == ["Q", "Q"]
    assert len(endpoint.asked) == 2  # the second time for the one that was missing


def test_raw_text_is_rewritten_and_has_no_wrong_answers(
    endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.reply = lambda prompt, seed: json.dumps({"answer": f"In other words {seed}."})
    out = tmp_path / "variants.jsonl"
    (variant,) = writer.compose(
        [{"text": "As it stands."}], model="m", url=endpoint.url, out=out, paraphrases=1, perturbations=1, seed=0
    )
    assert variant.kind == "paraphrase" and variant.text["text"].startswith("In other words")
    assert "perturbations is not used" in caplog.text


@pytest.mark.parametrize(
    ("reply", "says"),
    [(lambda p, s: 401, "refuses .401.*OPENAI_API_KEY"), (lambda p, s: "I can't help with that.", "nothing usable")],
)
def test_endpoints_that_give_nothing(
    endpoint: Endpoint, tmp_path: Path, reply: Callable[[str, int], str | int], says: str
) -> None:
    endpoint.reply = reply
    with pytest.raises(UserError, match=says):
        writer.compose(FORGET, model="m", url=endpoint.url, out=tmp_path / "variants.jsonl", **SIZES)
    assert not (tmp_path / "variants.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "localhost:8000"}, "url is 'localhost:8000'; give the base"),
        ({"url": "http://127.0.0.1:9/v1"}, "gives no chat completion .*refused"),
        ({"url": None, "model": "/nowhere"}, "'/nowhere' does not exist"),
        ({"paraphrases": 0, "perturbations": 0}, "ask for at least one"),
        ({"paraphrases": -1}, "ask for at least one"),
        ({"out": Path("/dev/null")}, "/dev/null is not a file"),
        ({"out": Path("a" * 300)}, "aaa... can't be a path"),
    ],
)
def test_what_can_be_mended(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    arguments = {"model": "m", "url": "http://127.0.0.1:9/v1", "out": tmp_path / "v.jsonl", **SIZES, **change}
    with pytest.raises(UserError, match=says):
        writer.compose(FORGET, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_stays_as_it_is(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "notes.jsonl"
    out.write_text('{"note": 1}\n')
    with pytest.raises(UserError, match=r"notes.jsonl:1: kind is None"):
        writer.compose(FORGET, model="m", url=endpoint.url, out=out, **SIZES)
    assert out.read_text() == '{"note": 1}\n' and not endpoint.asked


def test_a_model_in_this_process_that_cannot_follow(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    rows = [{"question": "Who?", "answer": "Ann."}]
    with pytest.raises(UserError, match="nothing usable for any row, so it can't follow the instruction"):
        writer.compose(
            rows, model=str(tmp_path / "model"), out=tmp_path / "v.jsonl", paraphrases=1, perturbations=0, seed=0
        )
    assert "has no chat template" in caplog.text


@pytest.mark.parametrize("kind", augment.KINDS)
def test_prompts_hold_the_row_and_the_number(kind: Any) -> None:
    prompt = writer._Task(0, FORGET[3], kind, 5).prompt()
    assert FORGET[3]["question"] in prompt and FORGET[3]["answer"] in prompt and "Reply with 5 lines" in prompt
