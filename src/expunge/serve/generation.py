"""Answers to several requests from one model, in turn, a forward at a time; each can be stopped before its next one.

Every request under way runs `transformers`' own `generate` in a thread. Before each forward it waits for its turn:
seven eighths of the time go to the request with the fewest tokens (prompt and most of the answer), and among equals to
the one that has had least time; the last eighth goes around. So a short request beside long ones takes about a seventh
longer than alone, and no long one stands still.
"""

import asyncio
import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

from expunge.data.encode import decoded
from expunge.evals.requests import context_length, end_tokens
from expunge.modeling.causal import CausalLM
from expunge.serve.asked import Asked, Limits, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PREFILL = 256
"""Tokens of a prompt that are read in one turn."""

BURST = 0.02
"""Seconds that may be saved up for the requests that go around."""


class Ended(Exception):
    """Raised inside of `generate` to leave it."""


@dataclass(frozen=True)
class Finished:
    """The last event of an answer: why it ended, and how many tokens it took."""

    reason: str
    tokens: int


class Turns:
    """One job at a time holds the model."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[GenerationJob] = []
        self.holder: GenerationJob | None = None
        self.credit = 0.0

    def take(self, job: "GenerationJob") -> None:
        """Give the model back, if `job` holds it, and wait until it is its turn (again)."""
        with self.lock:
            self._give(job)
            self.waiting.append(job)
            self._next()
        job.turn.acquire()
        self.began = time.perf_counter()
        if job.random is not None:
            for device, state in job.random.items():
                device.set_rng_state(state)

    def leave(self, job: "GenerationJob") -> None:
        with self.lock:
            self._give(job)
            self._next()

    def _give(self, job: "GenerationJob") -> None:
        if self.holder is not job:
            return
        took = time.perf_counter() - self.began
        job.served += took
        # The time of the first in line earns a seventh of it for the others.
        self.credit = min(self.credit + took / 7, BURST) if self.first else self.credit - took
        job.random = {device: device.get_rng_state() for device in job.engine.generators}
        self.holder = None

    def _next(self) -> None:
        if self.holder is not None or not self.waiting:
            return
        least = min(self.waiting, key=lambda job: (not job.cancelled, job.size, job.served))
        self.holder = self.waiting[0] if self.credit > 0 and not least.cancelled else least
        self.first = self.holder is least
        self.waiting.remove(self.holder)
        self.holder.turn.release()


class Answer:
    """The text of tokens as they come, cut before the first of `stops`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.text, self.shown, self.stopped = "", 0, False
        self.begin = self.read = 0

    def add(self, token: int) -> str:
        """The text that can be shown now: no half character, and nothing that may turn out to begin a stop."""
        self.ids.append(token)
        # Tokens are decoded behind those before them, since many decoders drop the space before the first.
        before, now = self._decode(self.ids[self.begin : self.read]), self._decode(self.ids[self.begin :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self.begin, self.read = self.read, len(self.ids)
        return self._grow(now[len(before) :])

    def rest(self) -> str:
        """The rest of the text, once no more tokens come."""
        before, now = self._decode(self.ids[self.begin : self.read]), self._decode(self.ids[self.begin :])
        shown = "" if self.stopped else self._grow(now[len(before) :])
        return shown if self.stopped else shown + self._show(len(self.text))

    def _grow(self, piece: str) -> str:
        self.text += piece
        places = [at for stop in self.stops if (at := self.text.find(stop, self.shown)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
        held = 0 if self.stopped else max((_begun(self.text, stop) for stop in self.stops), default=0)
        return self._show(len(self.text) - held)

    def _show(self, end: int) -> str:
        piece, self.shown = self.text[self.shown : end], max(self.shown, end)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return decoded(ids, self.tokenizer)


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop` stand at the end of `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class GenerationJob(StoppingCriteria):
    """One answer under way; its events are pieces of text, then `Finished`, or `Refused`."""

    def __init__(self, engine: "Engine", prompt: Sequence[int], asked: Asked, *, address: str) -> None:
        self.engine, self.prompt, self.address = engine, prompt, address
        self.config = engine.generation_config(asked, room=engine.context - len(prompt))
        self.seed = asked.seed
        self.answer = Answer(engine.tokenizer, asked.stops)
        self.events: asyncio.Queue[str | Finished | Refused] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.size = len(prompt) + self.config.max_new_tokens
        self.cancelled = False
        self.turn = threading.Semaphore(0)
        self.served = 0.0
        self.random: dict[Any, torch.Tensor] | None = None

    def cancel(self) -> None:
        """End before the next forward, or at once while it waits for room."""
        self.cancelled = True
        self.engine.forget(self)

    async def pieces(self, deadline: float) -> AsyncIterator[str | Finished]:
        """Pieces of the answer's text and then `Finished`; whoever leaves earlier ends the job.

        deadline: on the loop's clock; `Refused` when it passes.
        """
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    event = await self.events.get()
                if isinstance(event, Refused):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        except TimeoutError:
            raise Refused("the answer took longer than this server allows.", status=504, code="timeout") from None
        finally:
            self.cancel()

    def run(self) -> None:
        """Generate, in a thread of its own."""
        turns, model = self.engine.turns, self.engine.model
        self.engine.current.job = self
        try:
            turns.take(self)
            if self.cancelled:
                raise Ended
            torch.manual_seed(self.seed) if self.seed is not None else torch.seed()
            ids_1T = torch.tensor([list(self.prompt)], device=model.device)
            model.generate(
                ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=self.config, stopping_criteria=[self]
            )
            self._say(self.answer.rest())
            reason = "length" if self._open() else "stop"
            self._say(Finished(reason, len(self.answer.ids)))
        except Ended:
            self._say(Refused("the request was cancelled.", status=503))
        except Exception:
            log.exception("an answer failed")
            self._say(Refused("the answer failed; the server's log says why.", status=500))
        finally:
            turns.leave(self)
            self._call(self.engine.left, self)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._say(self.answer.add(int(input_ids[0, -1])))
        return torch.full((1,), self.answer.stopped, device=input_ids.device)

    def _open(self) -> bool:
        """Whether the answer has neither an end token nor a stop."""
        ids = self.answer.ids
        return not self.answer.stopped and not (ids and ids[-1] in self.config.eos_token_id)

    def _say(self, event: str | Finished | Refused) -> None:
        if event != "":
            self._call(self.events.put_nowait, event)

    def _call(self, *what: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            self.loop.call_soon_threadsafe(*what)


class Engine:
    """The served model, the jobs it works on in turn, and those that wait."""

    def __init__(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase", limits: Limits) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        self.model: Any = model.eval()
        self.context = context_length(model)
        self.turns, self.current = Turns(), threading.local()
        self.generators: list[Any] = [torch, *([torch.cuda] if model.device.type == "cuda" else [])]
        """Who draws random numbers; every job goes on with its own."""
        self.admitted = Counter[str]()
        """Requests that are under way or wait, by the client's address."""
        self.waiting: list[GenerationJob] = []
        self.running: list[GenerationJob] = []
        self.ends = end_tokens(model, tokenizer)
        self.prefill = PREFILL if reads_in_parts(model) else None
        model.register_forward_pre_hook(self._before_a_forward)

    def enter(self, address: str) -> None:
        """Count one more request of an address; `Refused` where it, or all of them together, have too many."""
        if self.admitted[address] >= self.limits.requests // 2 or self.admitted.total() >= self.limits.requests:
            raise Refused("too many requests are waiting; come again later.", status=429, code="rate_limit_exceeded")
        self.admitted[address] += 1

    def leave(self, address: str) -> None:
        """Count one request of an address less."""
        self.admitted[address] -= 1
        self.admitted += Counter()  # drops the addresses without a request

    def start(self, job: GenerationJob) -> None:
        """Begin a job, now or when others have ended."""
        self.waiting.append(job)
        self._fill()

    def forget(self, job: GenerationJob) -> None:
        """Drop a job that has not begun."""
        if job in self.waiting:
            self.waiting.remove(job)
            self.leave(job.address)
            self._fill()

    def left(self, job: GenerationJob) -> None:
        self.running.remove(job)
        self.leave(job.address)
        self._fill()

    def _fill(self) -> None:
        for job in [*self.waiting]:
            if self._has_room(job):
                self.waiting.remove(job)
                self.running.append(job)
                # A daemon: a server that has been told to end does not wait for a long forward.
                threading.Thread(target=job.run, daemon=True).start()

    def _has_room(self, job: GenerationJob) -> bool:
        """Whether a cache for the job may be held; long jobs together leave a quarter of all tokens to short ones."""
        share = self.limits.tokens // 4
        is_short = job.size <= share // 2
        alike = [other.size for other in self.running if (other.size <= share // 2) == is_short]
        return not alike or sum(alike) + job.size <= (share if is_short else 3 * share)

    def generation_config(self, asked: Asked, *, room: int) -> Any:
        """The model's own settings under what the request asks; `Refused` for more than the context holds."""
        most = asked.most if asked.most is not None else min(self.limits.default_tokens, room)
        if most > room or room < 1:
            prompt = self.context - room
            raise Refused(
                f"max_tokens: the prompt has {prompt} tokens and {most} are asked for; the context has {self.context}.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        config = copy.deepcopy(self.model.generation_config)
        config.max_new_tokens, config.max_length = most, None
        config.num_beams = config.num_return_sequences = 1
        config.eos_token_id, config.stop_strings = self.ends, None
        config.pad_token_id = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        config.prefill_chunk_size, config.return_dict_in_generate = self.prefill, False
        if asked.temperature is not None or asked.top_p is not None:
            config.do_sample = asked.temperature != 0
        if not config.do_sample:
            config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50  # greedy; the defaults, which say nothing
            return config
        config.temperature = asked.temperature if asked.temperature is not None else config.temperature
        config.top_p = asked.top_p if asked.top_p is not None else config.top_p
        return config

    def _before_a_forward(self, *_: Any) -> None:
        job: GenerationJob | None = getattr(self.current, "job", None)
        if job is not None:
            self.turns.take(job)
            if job.cancelled:
                raise Ended


@torch.inference_mode()
def reads_in_parts(model: Any) -> bool:
    """Whether the model answers the same when it reads its prompt in parts; tried once, on a few tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = (torch.arange(3, 27, device=model.device) * 7 % vocabulary)[None]
    common = {"attention_mask": torch.ones_like(ids_1T), "max_new_tokens": 2, "do_sample": False}
    common |= {"output_logits": True, "return_dict_in_generate": True}
    try:
        whole, parts = (model.generate(ids_1T, **common, prefill_chunk_size=size) for size in (None, 7))
    except Exception:  # many models can't; which error they raise depends on the model
        return False
    pairs = zip(whole.logits, parts.logits, strict=False)
    scale = float(whole.logits[0].abs().max())
    return all(bool(torch.allclose(a, b, atol=1e-2 * scale, rtol=0)) for a, b in pairs)
