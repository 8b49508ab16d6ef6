"""The protocol of the endpoint: routes, bodies, keys, hosts, streams, and what a client gets when it goes wrong.

Starlette and uvicorn carry it. `transformers serve` was the alternative and is not used: every client can reset it or
load other models, its requests reach all of `GenerationConfig` (500 beams), its queue has no end, and it checks neither
bodies nor the context; middleware around it mends none of that, and its handlers take our models only by overriding
methods that are not public.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import uvicorn
from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from expunge.data.encode import encode, question_row
from expunge.errors import UserError
from expunge.modeling.causal import CausalLM
from expunge.serve.asked import Asked, ChatAsked, CompletionAsked, Limits, Refused, parse
from expunge.serve.generation import Engine, Finished, GenerationJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
IDLE = 5.0
"""Seconds between two looks at whether a connection sends its request."""
PAUSE = 0.05
"""Seconds before a refusal, and between the first parts of a body that are too much: who sends many is slowed down."""
DROPPED = 2**26
"""Bytes of a body that are read though it is not taken."""
GRACE = 5
"""Seconds that requests under way have when the server is told to end."""


def build(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    *,
    api_key: str | None,
    hosts: Sequence[str],
    limits: Limits,
) -> Any:
    """The ASGI application around a loaded model."""
    engine = Engine(model, tokenizer, limits)
    endpoint = Endpoint(engine, name, api_key)
    routes = [
        Route("/health", endpoint.health),
        Route("/v1/models", endpoint.guarded(endpoint.models)),
        Route("/v1/models/{name:path}", endpoint.guarded(endpoint.model)),
        Route("/v1/chat/completions", endpoint.guarded(endpoint.chat), methods=["POST"]),
        Route("/v1/completions", endpoint.guarded(endpoint.complete), methods=["POST"]),
    ]
    handlers: Any = {Refused: _refused, HTTPException: _http_error, ClientDisconnect: _left, Exception: _fault}
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False)
    app = Starlette(routes=routes, middleware=[trusted], exception_handlers=handlers)
    app.state.engine = engine
    return app


def serve_on(listening: Sequence[socket.socket], app: Any, name: str, *, open_to_all: bool) -> None:
    """Serve `app` on sockets until the process is interrupted or terminated."""
    host, port = listening[0].getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    log.info("serving %s as an OpenAI-compatible endpoint: http://%s:%d/v1", name, where, port)
    if open_to_all and not all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in listening):
        log.warning("other machines can reach it and no API key is asked for; give --api-key, or EXPUNGE_API_KEY")
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    uvicorn.Server(config).run(sockets=list(listening))


class PatientProtocol(H11Protocol):
    """uvicorn's own, but a connection that has not sent a whole head of a request within two looks is closed."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._seen = self.cycle
        self._look_again = self.loop.call_later(IDLE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        idle = self.cycle is self._seen and (self.cycle is None or self.cycle.response_complete)
        if idle and self.transport is not None:
            self.transport.close()
            return
        self._seen = self.cycle
        self._look_again = self.loop.call_later(IDLE, self._look)


class Endpoint:
    """The routes of one served model."""

    def __init__(self, engine: Engine, name: str, api_key: str | None) -> None:
        self.engine, self.name, self.api_key = engine, name, api_key
        self.limits = engine.limits

    def guarded(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The route for those who know the key."""

        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self.api_key is not None and not hmac.compare_digest(given.encode(), self.api_key.encode()):
                raise Refused("the API key is wrong or missing.", status=401, code="invalid_api_key")
            return await route(request)

        return checked

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self.name:
            raise Refused(f"this server serves {self.name!r}.", status=404, code="model_not_found")
        return JSONResponse(self._card())

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatAsked, self._chat_prompt, Chat(self.name))

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, CompletionAsked, lambda asked: self._tokens(asked.prompt), Plain(self.name))

    async def _answer(
        self, request: Request, kind: Any, prompt_of: Callable[[Any], list[int]], form: "Form"
    ) -> Response:
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        asked = parse(kind, await self._body(request))
        if asked.model is not None and asked.model != self.name:
            raise Refused(f"model: this server serves {self.name!r}.", param="model", code="model_not_found")
        address = request.client.host if request.client is not None else ""
        self.engine.enter(address)
        try:
            prompt = await asyncio.to_thread(prompt_of, asked)
            if not prompt:
                raise Refused("the prompt is empty.", param="prompt")
            job = GenerationJob(self.engine, prompt, asked, address=address)
        except BaseException:
            self.engine.leave(address)
            raise
        self.engine.start(job)
        if not asked.stream:
            return await _whole(request, job, form, deadline)
        # The head of the response waits for the first piece: who asks and leaves asks no faster than the model answers.
        pieces = job.pieces(deadline)
        first = await _unless_gone(request, job, anext(pieces))
        if first is None:
            return Response(status_code=499)
        return TimedStream(_stream(job, asked, form, first, pieces), seconds=2 * self.limits.timeout)

    async def _body(self, request: Request) -> bytes:
        """The body, as far as it may be as long and take as long."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused("the content type must be application/json.", status=415)
        most, body, size = self.limits.body(self.engine.context), bytearray(), 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        body += part
                    elif size > DROPPED:
                        break
                    elif size < most + 2**19:  # read to its end and dropped: a client reads the answer after that
                        await asyncio.sleep(PAUSE)
        except TimeoutError:
            if size <= most:
                raise Refused("the body did not come in time.", status=408) from None
        if size > most:
            raise Refused(f"the body must have at most {most} bytes.", status=413)
        return bytes(body)

    def _chat_prompt(self, asked: ChatAsked) -> list[int]:
        tokenizer = self.engine.tokenizer
        if not tokenizer.chat_template:
            # Such models are trained on single questions, and asked as evaluation asks them.
            if len(asked.messages) > 1 or asked.messages[0].role != "user":
                raise Refused("messages: without a chat template give a single one, the user's.", param="messages")
            encoded = encode(question_row(asked.messages[0].text, "!"), tokenizer)
            return list(encoded.input_ids[: encoded.start])
        turns = [{"role": message.role, "content": message.text} for message in asked.messages]
        try:
            return cast(list[int], tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
        except (TemplateError, UserError, ValueError, TypeError, KeyError) as error:
            raise Refused(f"messages: the chat template refuses them ({str(error)[:200]}).", param="messages") from None

    def _tokens(self, text: str) -> list[int]:
        return self.engine.tokenizer(text, verbose=False)["input_ids"]

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "expunge"}


class Form:
    """How an answer is written down."""

    kind = streamed = prefix = ""

    def __init__(self, model: str) -> None:
        self.model = model

    def choice(self, text: str, reason: str | None) -> dict[str, Any]:
        """The choice of a whole answer."""
        raise NotImplementedError

    def piece(self, text: str, reason: str | None) -> dict[str, Any]:
        """The choice of a streamed piece."""
        return self.choice(text, reason)

    def frame(self, kind: str, number: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": f"{self.prefix}-{number}", "object": kind, "created": int(time.time()), "model": self.model}
        return {**head, "choices": choices, **more}


class Chat(Form):
    kind, streamed, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, text: str, reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}

    def piece(self, text: str, reason: str | None) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if reason is None else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


class Plain(Form):
    kind, streamed, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


class TimedStream(StreamingResponse):
    """A stream that ends at a time, however slowly the client reads."""

    def __init__(self, events: AsyncIterator[str], *, seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.seconds = seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                await super().__call__(scope, receive, send)
        except (TimeoutError, ClientDisconnect):
            log.warning("a stream was cut off: its client was too slow, or left")


async def _stream(
    job: GenerationJob, asked: Asked, form: Form, first: str | Finished, pieces: AsyncIterator[str | Finished]
) -> AsyncIterator[str]:
    number = uuid.uuid4().hex
    try:
        async for event in _with_first(first, pieces):
            piece = form.piece("", event.reason) if isinstance(event, Finished) else form.piece(event, None)
            yield _event(form.frame(form.streamed, number, [piece]))
            if isinstance(event, Finished) and asked.with_usage:
                yield _event(form.frame(form.streamed, number, [], usage=_usage(job, event)))
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield _event(error.body)
    finally:
        job.cancel()


async def _with_first(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for each in rest:
        yield each


async def _whole(request: Request, job: GenerationJob, form: Form, deadline: float) -> Response:
    """The answer in one piece, or nothing for a client that has left."""

    async def collected() -> tuple[str, Finished]:
        text: list[str] = []
        async for event in job.pieces(deadline):
            if isinstance(event, Finished):
                return "".join(text), event
            text.append(event)
        raise AssertionError

    answer = await _unless_gone(request, job, collected())
    if answer is None:
        return Response(status_code=499)
    text, end = answer
    choices = [form.choice(text, end.reason)]
    return JSONResponse(form.frame(form.kind, uuid.uuid4().hex, choices, usage=_usage(job, end)))


async def _unless_gone(request: Request, job: GenerationJob, awaited: Awaitable[T]) -> T | None:
    """Wait for a result of the job; once the client has left, end the job and return `None`."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.ensure_future(awaited), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        job.cancel()
        return None
    except BaseException:
        job.cancel()
        raise
    finally:
        answer.cancel()
        left.cancel()


def _usage(job: GenerationJob, end: Finished) -> dict[str, int]:
    asked, generated = len(job.prompt), end.tokens
    return {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated}


def _event(tree: Any) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"


async def _refused(_request: Request, error: Any) -> Response:
    await asyncio.sleep(PAUSE)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    return await _refused(request, Refused(f"{error.detail}.", status=error.status_code))


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)


async def _fault(request: Request, _error: Exception) -> Response:
    return await _refused(request, Refused("the server failed; its log says why.", status=500))
