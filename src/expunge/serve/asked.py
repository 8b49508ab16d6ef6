"""Fields of a request: those that are honoured, their bounds, and every other one refused by name."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Stop = Annotated[str, Field(min_length=1, max_length=256)]
Nothing = Annotated[list[Any], Field(max_length=0)] | Annotated[dict[str, Any], Field(max_length=0)] | None
"""A field that is not supported, as clients send it that do not use it."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all of them together.

    timeout: seconds from a request's arrival to the end of its answer.
    body_seconds: seconds that a client may take to send a request.
    requests: under way and waiting, half of them from one address; of more the client is told to come again.
    tokens: of prompts and answers that are under way at a time, each of which holds a cache; others wait.
    default_tokens: tokens of an answer where the request does not say.
    """

    timeout: float = 120.0
    body_seconds: float = 10.0
    requests: int = 64
    tokens: int = 2**14
    default_tokens: int = 512

    def body(self, context: int) -> int:
        """Bytes of a request: room for a full context in any script, escaped."""
        return 2**16 + 24 * min(context, 2**18)


class Refused(Exception):
    """A request that is not answered, in the form that OpenAI's clients read."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {"Retry-After": "1"} if status in (429, 503) else {}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation. An assistant's turn may carry the empty fields that it was answered with."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    refusal: None = None
    tool_calls: Nothing = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False


class ResponseFormat(Strict):
    type: Literal["text"]


class Asked(Strict):
    """Fields that chat and plain completions share. A field that is not honoured takes only the value that changes
    nothing."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logit_bias: Nothing = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def most(self) -> int | None:
        return self.max_tokens

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatAsked(Asked):
    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: Nothing = None
    tool_choice: Literal["none"] | None = None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionAsked(Asked):
    prompt: str
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: Literal[""] | None = None


A = TypeVar("A", bound=Asked)


def parse(kind: type[A], body: bytes) -> A:
    """The request in a body of JSON; `Refused` names the first field that is wrong."""
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        here = [each for each in problems if each["loc"][:1] == problems[0]["loc"][:1]]
        # Of the kinds that a field may be of, the one that was meant.
        raise _refusal(max(here, key=lambda each: (len(each["loc"]), each["type"] != "string_type"))) from None
    if asked.stream_options is not None and not asked.stream:
        raise Refused("stream_options: goes with stream; leave it out.", param="stream_options")
    if isinstance(asked, ChatAsked) and None not in (asked.max_tokens, asked.max_completion_tokens):
        raise Refused("max_tokens: means what max_completion_tokens does; give one of them.", param="max_tokens")
    return asked


def _refusal(error: Any) -> Refused:
    places = [str(part) for part in error["loc"]]
    names = [part for part in places if not part.startswith(("list[", "dict[", "constrained-", "str", "none"))]
    param = ".".join(names) or None
    if error["type"] == "json_invalid":
        return Refused(f"the body is not valid JSON ({error['msg'].rpartition(': ')[2]}).")
    if error["type"] == "extra_forbidden":
        return Refused(f"{param}: is not supported by this server; leave it out.", param=param, code="unsupported")
    if error["type"] == "missing":
        return Refused(f"{param}: is missing; give it.", param=param)
    given = repr(error["input"])
    shown = f", got {given}" if len(given) <= 40 else ""
    return Refused(f"{param or 'the body'} {re.sub('^[A-Z][a-z]+ should', 'must', error['msg'])}{shown}.", param=param)
